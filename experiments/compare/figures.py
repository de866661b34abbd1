"""Figures of a study: curves with bands over seeds, differences with intervals, coefficients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.compare.findings import BUDGETS, Comparison, Findings
from experiments.compare.runs import Run
from experiments.compare.sensitivity import Sensitivity
from experiments.run.report import number_label
from experiments.terminal.figures import COLOURS, ORANGE, fit, layer_bar, layer_line, panels
from polycom_jax.storage import Place

Runs = Mapping[str, Sequence[Run]]
"""Arm -> its runs, one a seed."""

SMOOTHED = 5
"""Points of a curve that are averaged where it is drawn."""
BAND = "Means over seeds; bands: from the least to the greatest of the seeds."


def draw_all(folder: Place, found: Findings, runs: Runs, batch_tokens: int) -> list[Place]:
    """Draws every figure of a study that there is something to draw in; the paths, no suffix."""
    names = ("dynamics", "decayed", "differences", "rates")
    figures = [folder / name for name in names]
    drawn = [
        _draw_dynamics(figures[0], found.study, runs, batch_tokens),
        _draw_decayed(figures[1], found),
        _draw_differences(figures[2], found),
        draw_rates(figures[3], {found.study: found.sensitivities}),
    ]
    for arm, own in runs.items():
        figures.append(folder / f"coefficients-{arm}")
        title = f"{found.study}: coefficients of {arm}"
        drawn.append(_draw_coefficients(figures[-1], title, _whole(own), batch_tokens))
    return [path for path, is_drawn in zip(figures, drawn, strict=True) if is_drawn]


def _line(index: int) -> dict[str, Any]:
    style = "-" if index < len(COLOURS) else "--"
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": style}


def _whole(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if not run.diverged]


def _draw_dynamics(path: Place, study: str, runs: Runs, batch_tokens: int) -> bool:
    """Training loss, its paired difference to the first arm, and the norm of the gradient.

    What a batch adds to every arm's loss drops out of the difference.
    """
    good = {arm: _whole(own) for arm, own in runs.items()}
    first, *others = good
    base = {run.key.seed: np.array(run.loss) for run in good[first]}
    losses = {arm: [np.array(run.loss) for run in own] for arm, own in good.items()}
    gradients = {arm: [np.array(run.grad_norm) for run in own] for arm, own in good.items()}
    paired = {
        arm: [np.array(run.loss) - base[run.key.seed] for run in own if run.key.seed in base]
        for arm, own in good.items()
    }
    shown = [("training loss", "loss (nats a token)", losses)]
    if any(paired[arm] for arm in others):
        shown.append((f"training loss - {first}'s", "difference (nats a token)", paired))
    shown.append(("gradient", "norm", gradients))
    if not any(good.values()):
        return False
    title, note = f"{study}: training", f"{BAND} Smoothed over {SMOOTHED} points."
    with panels(path, len(shown), title=title, note=note, size=(4.4, 3.2)) as axes:
        for axis, (name, label, values) in zip(axes, shown, strict=True):
            for index, arm in enumerate(good):
                if values[arm]:
                    x = np.array(good[arm][0].steps) * batch_tokens
                    _band(axis, x, np.array(values[arm]), _line(index), arm)
            _tokens_along(axis)
            axis.set(title=name, ylabel=label)
    return True


def _band(axis: Any, x: np.ndarray, values: np.ndarray, line: dict[str, Any], label: str) -> None:
    """Mean and range over the first axis of [seeds, points]."""
    width = min(SMOOTHED, values.shape[1])
    window = np.ones(width) / width
    values = np.array([np.convolve(row, window, mode="valid") for row in values])
    x = np.convolve(x, window, mode="valid")
    axis.plot(x, values.mean(0), label=label, **line)
    axis.fill_between(x, values.min(0), values.max(0), color=line["color"], alpha=0.1)


def _draw_decayed(path: Place, found: Findings) -> bool:
    """Held-out loss at the end of each length's decay."""
    if not any(arm.curve for arm in found.arms):
        return False
    title = f"{found.study}: held-out loss at equal tokens"
    note = "Means over seeds; each point is of runs whose rate decayed to zero there."
    with panels(path, 1, title=title, note=note, size=(5.2, 3.4)) as (axes,):
        for index, arm in enumerate(found.arms):
            if arm.curve:
                axes.plot(
                    *zip(*arm.curve, strict=True), marker="o", markersize=3, label=arm.name,
                    **_line(index),
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlabel="tokens", ylabel="held-out loss (nats a token)")
    return True


def _draw_differences(path: Place, found: Findings) -> bool:
    """Each comparison's mean and interval, at equal tokens and at equal seconds."""
    shown = {
        budget: own
        for budget in BUDGETS
        if (own := [c for c in found.comparisons if c.budget == budget and c.result])
    }
    if not shown:
        return False
    width = 4.8
    names = {b: [fit(f"{c.arm} - {c.reference}", 0.4 * width, 8) for c in shown[b]] for b in shown}
    longest = max(map(len, names.values()))
    lines = max(name.count("\n") + 1 for own in names.values() for name in own)
    title = f"{found.study}: differences in held-out loss"
    note = "Dots: means over seeds; lines: 95 % intervals, coloured where they leave out zero."
    size = (width, 1.4 + longest * (0.1 + 0.15 * lines))
    with panels(path, len(shown), title=title, note=note, shared="x", size=size) as axes:
        for axis, (budget, own) in zip(axes, shown.items(), strict=True):
            for place, comparison in enumerate(own):
                _interval(axis, place, comparison)
            axis.set_yticks(range(len(own)), names[budget], fontsize=8)
            axis.axvline(0, color=ORANGE, linewidth=1.0)
            axis.invert_yaxis()
            axis.locator_params(axis="x", nbins=5)
            axis.set(title=f"at equal {budget}", xlabel="difference (nats a token)")
    return True


def _interval(axis: Any, place: int, comparison: Comparison) -> None:
    result = comparison.result
    if result is not None:
        colour = COLOURS[0] if result.found else "0.6"
        axis.plot([result.low, result.high], [place, place], color=colour)
        axis.plot(result.mean, place, marker="o", markersize=4, color=colour)


def draw_rates(path: Place, found: Mapping[str, Sequence[Sensitivity]]) -> bool:
    """Loss against learning rate, a panel a study: a steep valley is a sensitive arm."""
    shown = {name: own for name, own in found.items() if any(map(_known, own))}
    if not shown:
        return False
    arms = list(dict.fromkeys(one.arm for own in shown.values() for one in own))
    title = "Held-out loss against learning rate"
    note = (
        "Of the search for rates. Means over its seeds; bands: from the least to the greatest."
        " Never above the loss before the first update."
    )
    with panels(path, len(shown), title=title, note=note, size=(4.4, 3.2)) as axes:
        for axis, (name, own) in zip(axes, shown.items(), strict=True):
            for one in filter(_known, own):
                line = _line(arms.index(one.arm))
                losses = np.array(one.losses)
                axis.plot(one.tried, losses.mean(1), marker="o", markersize=3, label=one.arm,
                          **line)  # fmt: skip
                axis.fill_between(one.tried, losses.min(1), losses.max(1), color=line["color"],
                                  alpha=0.1)  # fmt: skip
            _rates_along(axis)
            axis.set(title=name, xlabel="peak learning rate", ylabel="loss (nats a token)")
    return True


def _rates_along(axis: Any) -> None:
    """Rates on a logarithmic axis, two labels a power of ten: more would touch each other."""
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")


def _known(found: Sensitivity) -> bool:
    """Whether there is a curve to draw."""
    return bool(np.isfinite(found.losses).any())


def _tokens_along(axis: Any) -> None:
    """Tokens on the horizontal axis, as 250k or 1M."""
    from matplotlib.ticker import EngFormatter

    axis.set_xlabel("tokens")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_coefficients(path: Place, title: str, runs: Sequence[Run], batch_tokens: int) -> bool:
    """One panel a number that is not zero throughout, one line a layer."""
    if not runs or not runs[0].coefficients or not runs[0].coefficients[-1]:
        return False
    numbers = {
        number_label(name, i, len(found)): values
        for name in runs[0].coefficients[0]
        for found in [_values(runs, name)]
        for i, values in enumerate(found)
    }
    shown = {number: values for number, values in numbers.items() if np.any(values)}
    if not shown:
        return False
    left = ", ".join(number for number in numbers if number not in shown)
    note = BAND + (f" Left out, zero throughout: {left}." if left else "")
    x = np.array(runs[0].steps) * batch_tokens
    layers = next(iter(shown.values())).shape[-1]
    with panels(path, len(shown), title=title, note=note, columns=4, size=(3.0, 2.4)) as axes:
        for axis, (number, values) in zip(axes, shown.items(), strict=True):
            for layer, line in enumerate(np.moveaxis(values, -1, 0)):
                look = layer_line(layer, layers)
                axis.plot(x, line.mean(0), **look)
                axis.fill_between(x, line.min(0), line.max(0), color=look["color"], alpha=0.15)
            _tokens_along(axis)
            axis.set(title=number, ylabel="value")
        layer_bar(axes, layers)
    return True


def _values(runs: Sequence[Run], name: str) -> np.ndarray:
    """[numbers, seeds, points, layers]."""
    found = [[point[name] for point in run.coefficients] for run in runs]
    return np.moveaxis(np.array(found), -1, 0)
