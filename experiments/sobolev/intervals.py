"""Statistics over seeds: geometric means with intervals, and which differences exceed chance."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student  # SciPy comes with JAX

Row = dict[str, Any]
METRICS: Mapping[str, str] = {"sup": "sup error", "l2": "L2 error", "h1": "H1 error"}
CONFIDENCE = 0.95


def interval(
    logs: Sequence[float] | np.ndarray, comparisons: int = 1
) -> tuple[float, float, float]:
    """(mean, low, high) of exp(mean of `logs`): Student's interval of the mean, exponentiated.

    Args:
        logs: one number a seed, at least two.
        comparisons: how many such intervals are to hold together (Bonferroni).
    """
    values = np.asarray(logs, float)
    if not np.isfinite(values).all():  # a seed diverged
        return math.inf, 0.0, math.inf
    mean, count = values.mean(), len(values)
    level = 1 - (1 - CONFIDENCE) / (2 * comparisons)
    half = student.ppf(level, count - 1) * values.std(ddof=1) / math.sqrt(count)
    return tuple(float(v) for v in np.exp([mean, mean - half, mean + half]))  # pyright: ignore


def table(cells: Iterable[Row]) -> dict[tuple[int, str, str], dict[str, list[float]]]:
    """(size, target, activation) -> metric -> errors, ordered by seed."""
    found: dict[tuple[int, str, str], dict[str, list[float]]] = {}
    for cell in cells:
        for run in sorted(cell["runs"], key=lambda run: run["seed"]):
            key = (cell["size"], run["target"], cell["activation"])
            errors = found.setdefault(key, {metric: [] for metric in METRICS})
            for metric in METRICS:
                errors[metric].append(run[metric])
    return found


def summary(cells: Sequence[Row]) -> list[Row]:
    """One row a (size, target, activation): geometric means over seeds and their intervals."""
    about = {(cell["size"], cell["activation"]): cell for cell in cells}
    rows = []
    for (size, target, activation), errors in table(cells).items():
        cell = about[size, activation]
        row = {"size": size, "target": target, "activation": activation}
        row |= {name: cell[name] for name in ("parameters", "learning_rate")}
        for metric, values in errors.items():
            mean, low, high = interval(np.log(values))
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        rows.append({**row, "seeds": len(errors["l2"])})
    return rows


def contests(cells: Sequence[Row], metric: str) -> list[Row]:
    """One row a (size, target): the activation with the smallest mean, and those as good as it.

    An activation counts as worse where the interval of its error over the best one's, paired by
    seed, lies above 1, all comparisons of a row holding together.
    """
    errors = table(cells)
    rows = []
    for size, target in dict.fromkeys((size, target) for size, target, _ in errors):
        logs = {
            activation: np.log(values[metric])
            for (s, t, activation), values in errors.items()
            if (s, t) == (size, target)
        }
        best = min(logs, key=lambda name: float(np.mean(logs[name])))
        rivals = [name for name in logs if name != best]
        level = [
            name
            for name in rivals
            if np.isfinite(logs[name]).all()
            and interval(logs[name] - logs[best], len(rivals))[1] <= 1
        ]
        rows.append({"size": size, "target": target, "best": best, "not_told_apart": level})
    return rows


def overall(cells: Sequence[Row], metric: str) -> list[Row]:
    """One row an activation, best first: its error over the geometric mean of all activations'.

    Averaged over sizes and targets for each seed; the interval is that over seeds, so it says
    nothing of other targets, sizes, budgets.
    """
    errors = table(cells)
    names = list(dict.fromkeys(activation for _, _, activation in errors))
    settings = list(dict.fromkeys((size, target) for size, target, _ in errors))
    logs = np.array(
        [[np.log(errors[*setting, name][metric]) for setting in settings] for name in names]
    )  # [activation, setting, seed]
    # What diverged counts as infinitely bad, and is left out of what others are compared with.
    relative = (logs - np.ma.masked_invalid(logs).mean(axis=0).filled(0.0)).mean(axis=1)
    rows = []
    for name, values in zip(names, relative, strict=True):
        mean, low, high = interval(values)
        rows.append({"activation": name, "ratio": mean, "low": low, "high": high})
    return sorted(rows, key=lambda row: row["ratio"])


def beside(cells: Sequence[Row], base: str, metric: str) -> dict[str, tuple[float, float, float]]:
    """Activation -> (ratio, low, high) of its error to that of `base`, paired by seed.

    Logarithms of ratios are averaged over sizes and targets for each seed; the interval is that
    over seeds.
    """
    errors = table(cells)
    names = dict.fromkeys(activation for _, _, activation in errors)
    settings = list(dict.fromkeys((size, target) for size, target, _ in errors))
    logs = {
        name: np.log([errors[*setting, name][metric] for setting in settings]) for name in names
    }
    return {name: interval((logs[name] - logs[base]).mean(axis=0)) for name in names}
