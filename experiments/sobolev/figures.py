"""Figures of the studies: panels of lines and bands, logarithmic axes, theory's lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.terminal.figures import COLOURS, MARKERS, REFERENCE, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        label: in the legend; "" for none.
        x: ascending.
        y: as many.
        low: lower edge of a band, or None.
        high: its upper edge.
        reference: a line of theory: dashed, without markers.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    reference: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        lines: in it; those of one label look alike in all panels.
        x_label: of the x axis.
        y_label: of the y axis.
        x_log: whether the x axis is logarithmic.
        y_log: whether the y axis is.
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    x_log: bool = True
    y_log: bool = True


def draw(
    path: Path,
    parts: Sequence[Panel],
    title: str,
    columns: int = 2,
    *,
    note: str = "",
    shared: str = "",
) -> None:
    """Draws the panels with one legend and saves `path`.png and `path`.pdf.

    Args:
        path: without a suffix.
        parts: the panels.
        title: above all of them.
        columns: panels in a row.
        note: what bands and dashed lines are.
        shared: "x", "y" or "xy": axes that all panels have in common.
    """
    labels = [line.label for part in parts for line in part.lines if not line.reference]
    looks = {
        label: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, label in enumerate(dict.fromkeys(labels))
    }
    look = {"title": title, "note": note, "shared": shared}
    with panels(path, len(parts), columns=columns, size=(3.7, 2.7), **look) as axes:
        for part, own in zip(parts, axes, strict=True):
            _draw(own, part, looks)


def _draw(axes: "Axes", panel: Panel, looks: Mapping[str, Mapping[str, str]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for line in sorted(panel.lines, key=lambda line: line.reference):  # theory last in the legend
        style: dict[str, Any] = (
            REFERENCE if line.reference else {**looks[line.label], "markersize": 4}
        )
        axes.plot(line.x, _finite(line.y), label=line.label, **style)
        if line.low is not None and line.high is not None:
            low, high = _finite(line.low), _finite(line.high)
            axes.fill_between(line.x, low, high, color=style["color"], alpha=0.15, lw=0)
    if panel.x_log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high < 30 * low:  # Matplotlib's own labels run into each other over about a decade
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if panel.y_log:
        axes.set_yscale("log")
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)


def _finite(values: Sequence[float]) -> np.ndarray:
    """NaN, a gap, for what a network that diverged came to."""
    found = np.asarray(values, float)
    return np.where(np.isfinite(found), found, np.nan)


def power_line(
    x: Sequence[float], anchor: tuple[float, float], exponent: float, label: str
) -> Line:
    """Theory's line y = y_0 (x / x_0)^exponent through `anchor`."""
    x0, y0 = anchor
    return Line(label, list(x), [y0 * (value / x0) ** exponent for value in x], reference=True)
