"""Figures of a study: curves with bands over seeds, differences with intervals, coefficients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compare.findings import BUDGETS, Findings
from experiments.compare.runs import Run
from experiments.plots import COLOURS, panels

Runs = Mapping[str, Sequence[Run]]
"""Arm -> its runs, one a seed."""

SMOOTHED = 5
"""Points of a curve that are averaged where it is drawn."""


def draw_all(folder: Path, found: Findings, runs: Runs, batch_tokens: int) -> list[Path]:
    """Draws every figure of a study; the paths, without suffix."""
    figures = [folder / "dynamics", folder / "decayed", folder / "differences"]
    _draw_dynamics(figures[0], runs, batch_tokens)
    _draw_decayed(figures[1], found)
    _draw_differences(figures[2], found)
    for name, arm_runs in runs.items():
        if any(run.coefficients and run.coefficients[-1] for run in arm_runs):
            figures.append(folder / f"coefficients-{name}")
            _draw_coefficients(figures[-1], name, arm_runs, batch_tokens)
    return figures


def _line(index: int) -> dict[str, Any]:
    style = "-" if index < len(COLOURS) else "--"
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": style}


def _whole(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if not run.diverged]


def _draw_dynamics(path: Path, runs: Runs, batch_tokens: int) -> None:
    """Training loss, its paired difference to the first arm, and the norm of the gradient.

    Means over seeds with a band from least to greatest, smoothed over `SMOOTHED` points. What a
    batch adds to every arm's loss drops out of the difference.
    """
    good = {arm: _whole(arm_runs) for arm, arm_runs in runs.items()}
    first = next(iter(good))
    base = {run.key.seed: np.array(run.loss) for run in good[first]}
    with panels(path, 3, width=4.6, height=3.8) as axes:
        for index, (arm, arm_runs) in enumerate(good.items()):
            paired = [run for run in arm_runs if run.key.seed in base]
            curves = (
                [np.array(run.loss) for run in arm_runs],
                [np.array(run.loss) - base[run.key.seed] for run in paired],
                [np.array(run.grad_norm) for run in arm_runs],
            )
            for axis, values in zip(axes, curves, strict=True):
                if values:
                    x = np.array(arm_runs[0].steps) * batch_tokens
                    _band(axis, x, np.array(values), _line(index), arm)
        for axis, label in zip(
            axes,
            ("training loss (nats a token)", f"training loss - {first}'s", "norm of the gradient"),
            strict=True,
        ):
            _tokens_along(axis)
            axis.set_ylabel(label)
        axes[0].legend(fontsize=7)


def _band(axis: Any, x: np.ndarray, values: np.ndarray, line: dict[str, Any], label: str) -> None:
    """Mean and range over the first axis of [seeds, points]."""
    width = min(SMOOTHED, values.shape[1])
    window = np.ones(width) / width
    values = np.array([np.convolve(row, window, mode="valid") for row in values])
    x = np.convolve(x, window, mode="valid")
    axis.plot(x, values.mean(0), label=label, **line)
    axis.fill_between(x, values.min(0), values.max(0), color=line["color"], alpha=0.1)


def _draw_decayed(path: Path, found: Findings) -> None:
    """Held-out loss at the end of each length's decay."""
    with panels(path, 1, width=5.2, height=3.8) as (axes,):
        for index, arm in enumerate(found.arms):
            if arm.curve:
                axes.plot(
                    *zip(*arm.curve, strict=True), marker="o", markersize=3, label=arm.name,
                    **_line(index),
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("tokens, rate decayed to zero at each point")
        axes.set_ylabel("held-out loss (nats a token)")
        axes.legend(fontsize=7)


def _draw_differences(path: Path, found: Findings) -> None:
    """Each comparison's mean and interval, at equal tokens and at equal seconds."""
    shown = {b: [c for c in found.comparisons if c.budget == b and c.result] for b in BUDGETS}
    longest = max(map(len, shown.values()), default=0)
    with panels(path, 2, columns=2, width=4.8, height=1.4 + 0.28 * longest) as axes:
        for axis, budget in zip(axes, BUDGETS, strict=True):
            for place, c in enumerate(shown[budget]):
                if c.result is None:
                    continue
                colour = COLOURS[0] if c.result.found else "0.6"
                axis.plot([c.result.low, c.result.high], [place, place], color=colour)
                axis.plot(c.result.mean, place, marker="o", markersize=4, color=colour)
            names = [f"{c.arm} - {c.reference}" for c in shown[budget]]
            axis.set_yticks(range(len(names)), names, fontsize=7)
            axis.axvline(0, color=COLOURS[1], linewidth=1.0)
            axis.invert_yaxis()
            axis.set_xlabel(f"difference at equal {budget} (nats a token, 95 %)")


def _tokens_along(axis: Any) -> None:
    """Tokens on the horizontal axis, as 250k or 1M."""
    from matplotlib.ticker import EngFormatter

    axis.set_xlabel("tokens")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_coefficients(path: Path, arm: str, runs: Sequence[Run], batch_tokens: int) -> None:
    """One panel a number, one line a layer: mean over seeds, band from least to greatest."""
    import matplotlib as mpl

    good = _whole(runs)
    if not good:
        return
    first = good[0].coefficients[0]
    numbers = [(name, i) for name, layers in first.items() for i in range(len(layers[0]))]
    x = np.array(good[0].steps) * batch_tokens
    layers = len(next(iter(first.values())))
    with panels(path, len(numbers), columns=4, width=3.0, height=2.6) as axes:
        for axis, (name, i) in zip(axes, numbers, strict=True):
            for layer in range(layers):
                values = np.array(
                    [[point[name][layer][i] for point in run.coefficients] for run in good]
                )
                colour = mpl.colormaps["viridis"](0.9 * layer / max(layers - 1, 1))
                axis.plot(x, values.mean(0), color=colour, label=f"layer {layer}")
                axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15)
            axis.set_title(f"{arm}: a_{i}" if name == "coeffs" else f"{arm}: {name}")
            _tokens_along(axis)
        if layers <= 8:
            axes[0].legend(fontsize=7)
