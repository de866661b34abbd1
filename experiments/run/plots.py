"""Figures of a run and of a benchmark, as PNG to look at and PDF to print."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.run.metrics import series
from experiments.terminal.figures import BLUE, ORANGE, fit, layer_bar, layer_line, panels
from polycom_jax.storage import Place

SIZE = (5.2, 3.0)
"""Of figures of one panel, in inches."""


def plot_loss(
    path: Place, records: Sequence[Mapping[str, Any]], title: str, *, eval_tokens: int | None = None
) -> None:
    """Training and held-out loss over steps, in nats a token.

    Args:
        path: without a suffix.
        records: lines of a run's metrics.
        title: of the figure, behind "Loss".
        eval_tokens: held-out tokens that are read; None: all.
    """
    from matplotlib.ticker import MaxNLocator

    steps, train = series(records, "loss")
    points, heldout = series(records, "heldout_loss")
    with panels(path, 1, title=f"Loss: {title}", size=SIZE) as (axes,):
        if train:
            axes.plot(steps, train, color=BLUE, label="training, single batches")
        if heldout:
            part = "all of it" if eval_tokens is None else f"at most {eval_tokens:,} tokens"
            label = f"held-out, {part} (last: {heldout[-1]:.3f})"
            axes.plot(points, heldout, color=ORANGE, marker="o", markersize=4, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="step", ylabel="loss (nats a token)")


def plot_load(path: Place, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Each expert's load over steps, one line an expert; 1 is even."""
    loads = [(r["step"], r["expert_load"]) for r in records if "expert_load" in r]
    title = f"Load of the experts: {title}"
    note = "Tokens that an expert gets by those of an even share; means over layers."
    with panels(path, 1, title=title, note=note, size=SIZE) as (axes,):
        axes.axhline(1, color=ORANGE, linewidth=1.1, label="even")
        if loads:
            steps, shares = zip(*loads, strict=True)
            lines = axes.plot(steps, np.array(shares), color=BLUE, alpha=0.5, linewidth=0.8)
            lines[0].set_label("an expert")
        axes.set_ylim(bottom=0)
        axes.set(xlabel="step", ylabel="load by an even one")


def plot_shapes(
    path: Place,
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
        note: what was applied to what.
    """
    title = f"Activation in each layer: {title}"
    with panels(path, 1, title=title, note=note, size=SIZE) as (axes,):
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.axvline(0, color="0.7", linewidth=0.8)
        for layer, y in enumerate(layers):
            axes.plot(x, y, **layer_line(layer, len(layers)))
        axes.plot(x, start, color="0.25", linestyle="--", linewidth=1.1, label="at the start")
        layer_bar([axes], len(layers))
        axes.set_xlim(x[0], x[-1])
        axes.set(xlabel="input x", ylabel="output")


def plot_ratios(
    path: Place,
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
    width = SIZE[0]
    names = [fit(name, 0.4 * width) for name in ratios]
    places = np.arange(len(names))
    low, median, high = np.array(list(ratios.values())).T
    note = "Bars: medians over rounds; whiskers: from the lower to the upper quartile."
    lines = max(name.count("\n") + 1 for name in names)
    size = (width, 0.9 + len(names) * (0.1 + 0.16 * lines))
    with panels(path, 1, title=title, note=note, size=size) as (axes,):
        axes.barh(places, median, color=BLUE, height=0.62)
        whiskers = np.stack([median - low, high - median])
        axes.errorbar(median, places, xerr=whiskers, fmt="none", ecolor="0.25", capsize=2)
        axes.axvline(1, color=ORANGE, linewidth=1.1)
        if median.max() > 10:
            axes.set_xscale("log")
        for place, value, end in zip(places, median, high, strict=True):
            axes.annotate(
                f"{value:.3g}",
                (end, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.set_yticks(places, names)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(fit(label, 0.5 * width))  # beside the names
