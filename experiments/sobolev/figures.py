"""Figures of the studies, as PNG and PDF: logarithmic axes, theory's lines, bands for seeds."""

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.plots import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe and Ito's palette, distinct to colour-blind eyes; markers tell lines apart in grey.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#999933")
MARKERS = "os^vDP*X"


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


def draw(path: Path, panels: Sequence[Panel], title: str, columns: int = 2) -> None:
    """Draws the panels with one legend and saves `path`.png and `path`.pdf."""
    labels = [
        line.label for panel in panels for line in panel.lines if line.label and not line.reference
    ]
    looks = {
        label: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, label in enumerate(dict.fromkeys(labels))
    }
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with _figure(path, rows, columns, title) as axes:
        shown: dict[str, Any] = {}
        for panel, own in zip(panels, axes, strict=False):
            shown |= _draw(own, panel, looks)
        figure = axes[0].figure
        assert figure is not None
        for unused in axes[len(panels) :]:
            unused.set_visible(False)
        figure.legend(
            list(shown.values()),
            list(shown),
            loc="outside lower center",
            ncols=min(2 * columns, len(shown)),
        )


def _draw(axes: "Axes", panel: Panel, looks: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = {}
    for line in panel.lines:
        if line.reference:
            style: dict[str, Any] = {"color": "0.45", "linestyle": "--", "linewidth": 1.0}
        else:
            style = {**looks[line.label], "markersize": 4}
        (drawn,) = axes.plot(line.x, line.y, **style)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.15, lw=0)
        if line.label:
            shown.setdefault(line.label, drawn)
    if panel.x_log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high < 30 * low:  # Matplotlib's own labels run into each other over about a decade
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if panel.y_log:
        axes.set_yscale("log")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_title(panel.title)
    return shown


def _fold(title: "Text", figure: "Figure") -> None:
    """Breaks a title between words until it is no wider than its figure, which would clip it."""
    words = title.get_text().split()
    for width in range(len(title.get_text()), 0, -1):
        if title.get_window_extent().width <= 0.96 * figure.bbox.width:
            return
        title.set_text(textwrap.fill(" ".join(words), width, break_long_words=False))


def power_line(
    x: Sequence[float], anchor: tuple[float, float], exponent: float, label: str
) -> Line:
    """Theory's line y = y_0 (x / x_0)^exponent through `anchor`."""
    x0, y0 = anchor
    return Line(label, list(x), [y0 * (value / x0) ** exponent for value in x], reference=True)


@contextlib.contextmanager
def _figure(path: Path, rows: int, columns: int, title: str) -> Iterator[list["Axes"]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * columns, 2.7 * rows + 0.7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
        shown = figure.suptitle(title, fontsize=11)
        yield list(axes)
        _fold(shown, figure)
        figure.savefig(path.with_suffix(".png"))
        figure.savefig(path.with_suffix(".pdf"))
