"""Figures of a run, as PNG to look at and PDF to print. Matplotlib is imported on first use."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.logs import series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3 fonts
    "savefig.dpi": 120,  # small enough for a repository; the PDFs are for print
}
# Okabe and Ito's palette: distinct to colour-blind eyes and in grey.
_BLUE, _ORANGE = "#0072B2", "#D55E00"
COLOURS = (_BLUE, _ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.25", "#8C6D31", "#7F3C8D")
"""One a curve, in order; then again, dashed."""


@contextlib.contextmanager
def _figure(path: Path, width: float = 5.2, height: float = 3.4) -> Iterator["Axes"]:
    """One pair of axes, saved as `path`.png and `path`.pdf; `path` has no suffix."""
    with panels(path, 1, width=width, height=height) as (axes,):
        yield axes


@contextlib.contextmanager
def panels(
    path: Path, count: int, *, columns: int = 3, width: float = 4.0, height: float = 3.0
) -> Iterator[list["Axes"]]:
    """`count` pairs of axes of that size in rows of `columns`, saved as `path`.png and .pdf."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        # Without pyplot: no window, no global figure, no backend to choose.
        columns = min(columns, count)
        rows = -(-count // columns)
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        yield [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
        figure.savefig(path.with_suffix(".png"))
        figure.savefig(path.with_suffix(".pdf"))


def plot_loss(path: Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Training and held-out loss over steps, in nats a token."""
    from matplotlib.ticker import MaxNLocator

    steps, train = series(records, "loss")
    points, heldout = series(records, "heldout_loss")
    with _figure(path) as axes:
        if train:
            axes.plot(steps, train, color=_BLUE, label="training, single batches")
        if heldout:
            axes.plot(
                points,
                heldout,
                color=_ORANGE,
                marker="o",
                markersize=4,
                label=f"held-out, all of it (last: {heldout[-1]:.3f})",
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats a token)")
        axes.set_title(title)
        if train or heldout:
            axes.legend()


def plot_load(path: Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Each expert's load over steps, one line an expert; 1 is even."""
    loads = [(r["step"], r["expert_load"]) for r in records if "expert_load" in r]
    with _figure(path) as axes:
        axes.axhline(1, color=_ORANGE, linewidth=1.1, label="even")
        if loads:
            steps, shares = zip(*loads, strict=True)
            axes.plot(steps, np.array(shares), color=_BLUE, alpha=0.5, linewidth=0.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("load of an expert (mean over layers, 1 is even)")
        axes.set_title(title)
        axes.legend()


def plot_shapes(
    path: Path,
    x: np.ndarray,
    start: np.ndarray,
    layers: Sequence[np.ndarray],
    *,
    title: str,
    note: str,
) -> None:
    """The activation's output over its input, at the start (dashed) and in each trained layer.

    Args:
        path: without a suffix.
        x: input values, ascending, [P].
        start: output at initialisation, [P].
        layers: outputs of the trained layers, first to last, each [P].
        title: above the axes.
        note: what was applied to what, below them.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = mpl.colormaps["viridis"]
    scale = Normalize(vmin=0, vmax=max(len(layers) - 1, 1) / 0.9)  # its last tenth is too pale
    with _figure(path, height=3.8) as axes:
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.axvline(0, color="0.7", linewidth=0.8)
        for layer, y in enumerate(layers):
            label = f"layer {layer}" if len(layers) <= 8 else None
            axes.plot(x, y, color=colours(scale(layer)), label=label)
        axes.plot(x, start, color="0.25", linestyle="--", linewidth=1.1, label="at the start")
        if len(layers) > 8 and axes.figure is not None:
            bar = axes.figure.colorbar(ScalarMappable(scale, colours), ax=axes, label="layer")
            bar.ax.set_ylim(0, len(layers) - 1)
        axes.set_xlim(x[0], x[-1])
        axes.set_xlabel(f"input x\n{note}")
        axes.set_ylabel("activation")
        axes.set_title(title)
        axes.legend()


def plot_ratios(
    path: Path,
    ratios: Mapping[str, tuple[float, float, float]],
    *,
    title: str,
    label: str,
) -> None:
    """A bar for each name, its quartiles as a whisker, and a line at 1.

    Args:
        path: without a suffix.
        ratios: name -> (lower quartile, median, upper quartile), drawn from the top down.
        title: above the axes.
        label: what the ratio is of.
    """
    names = list(ratios)
    low, median, high = (np.array([ratios[name][i] for name in names]) for i in range(3))
    with _figure(path, height=1.2 + 0.26 * len(names)) as axes:
        axes.barh(names, median, color=_BLUE, height=0.62)
        whiskers = np.stack([median - low, high - median])
        axes.errorbar(median, names, xerr=whiskers, fmt="none", ecolor="0.25", capsize=2)
        axes.axvline(1, color=_ORANGE, linewidth=1.1)
        if median.max() > 10:
            axes.set_xscale("log")
        for name, value in zip(names, median, strict=True):
            axes.annotate(
                f" {value:.3g}",
                (value, name),
                xytext=(4, 6),
                textcoords="offset points",
                fontsize=7,
            )
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
        axes.set_title(title)
