"""What a study comes to: means over seeds, and differences to the reference, seeds paired."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from experiments.run.statistics import (
    LEVEL,
    Paired,
    holm,
    in_words,
    mean_interval,
    paired,
    sign_flip,
    smallest_p,
)
from experiments.sobolev.coordinates.study import Cell
from experiments.sobolev.coordinates.targets import Kind, kind_of
from experiments.sobolev.coordinates.train import Run


@dataclass(frozen=True)
class Measure:
    """What runs are judged by.

    Attributes:
        about: what it is.
        kinds: of the targets that it is for.
        take: its number of a run.
        decibels: more is better, and arms differ by a difference; else less is better, and arms
            differ by a ratio.
    """

    about: str
    kinds: tuple[Kind, ...]
    take: Callable[[Run], float]
    decibels: bool = False


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio, in dB, of a root mean square error where values span 2."""
    return 20 * float(np.log10(2 / error)) if error > 0 else float("nan")


MEASURES: Mapping[str, Measure] = {
    "PSNR": Measure("of pixels held out, dB", ("image",), lambda run: psnr(run.held[-1]), True),
    "training PSNR": Measure(
        "of pixels trained on, dB", ("image",), lambda run: psnr(run.train[-1]), True
    ),
    "L2": Measure(
        "root mean square error of distances at points held out",
        ("distance",),
        lambda run: run.held[-1],
    ),
    "sup": Measure("largest error there", ("distance",), lambda run: run.sup),
    "eikonal": Measure("mean of | |f'| - 1 | there", ("distance",), lambda run: run.length),
    "gradient": Measure(
        "root mean square error of gradients at points held out, over that of 0",
        ("image", "distance"),
        lambda run: run.slopes,
    ),
}
MAIN: Mapping[Kind, str] = {"image": "PSNR", "distance": "L2"}
"""What arms are ordered by."""


def measures(target: str) -> dict[str, Measure]:
    """Those of its kind."""
    return {name: each for name, each in MEASURES.items() if kind_of(target) in each.kinds}


def values(runs: Sequence[Run], measure: Measure) -> Float[np.ndarray, " S"]:
    """One number a run that did not fail; NaN for those that did. Errors by their logarithm."""
    numbers = [np.nan if run.failed else measure.take(run) for run in runs]
    return np.array(numbers) if measure.decibels else np.log(numbers)


@dataclass(frozen=True)
class Mean:
    """Over the seeds that did not fail, with its interval; NaN where there are fewer than two.

    Of errors the geometric mean.
    """

    mean: float
    low: float
    high: float


def mean_of(runs: Sequence[Run], measure: Measure) -> Mean:
    """Of a cell's results."""
    x = values(runs, measure)
    known = x[np.isfinite(x)]
    if known.size < 2:
        return Mean(*[float("nan")] * 3)
    found = mean_interval(known)
    return Mean(*(found if measure.decibels else map(float, np.exp(found))))


@dataclass(frozen=True)
class Difference:
    """Arm - reference on one target; of errors, of their logarithms.

    Attributes:
        target: on which.
        arm: which.
        reference: another arm, of as many seeds.
        measure: a name of `MEASURES`.
        found: statistics over the seeds where neither failed; None where these are fewer than two.
        pairs: how many these are.
        seeds: that both have run.
        side: of all of these: -1 where the arm has the lower number, 1 where the higher, 0 neither.
        p: of all of these, see `p_of`; NaN where there are fewer than two, or both failed in all.
        adjusted: p by Holm over all differences of this measure, made or not; NaN where p is.
    """

    target: str
    arm: str
    reference: str
    measure: str
    found: Paired | None
    pairs: int
    seeds: int
    side: int
    p: float
    adjusted: float = float("nan")

    @property
    def verdict(self) -> str:
        """In words: by the interval and p; by p alone where a run failed, since the interval is of
        seeds that went well."""
        low, high = "worse", "better"
        if not MEASURES[self.measure].decibels:
            low, high = high, low
        if self.pairs == self.seeds:
            return in_words(self.found, self.adjusted, lower=low, higher=high)
        if math.isnan(self.p):
            return "not comparable"
        if self.p > LEVEL:
            return "no difference found"
        side = low if self.side < 0 else high
        return side if self.adjusted <= LEVEL else f"{side}, not after Holm"


def differences(cells: Sequence[Cell], reference: str) -> list[Difference]:
    """Of each arm to the reference, each measure of each target; Holm within a measure."""
    made = [
        _paired(cell, cells, reference, name) for cell in cells for name in measures(cell.target)
    ]
    made = [each for each in made if each is not None]
    for name in MEASURES:
        own = [k for k, each in enumerate(made) if each.measure == name]
        adjusted = holm([1.0 if math.isnan(made[k].p) else made[k].p for k in own])
        for k, p in zip(own, adjusted, strict=True):
            made[k] = replace(made[k], adjusted=math.nan if math.isnan(made[k].p) else p)
    return made


def _paired(cell: Cell, cells: Sequence[Cell], reference: str, name: str) -> Difference | None:
    other = next((c for c in cells if (c.target, c.arm) == (cell.target, reference)), None)
    if other is None or cell.arm == reference:
        return None
    measure = MEASURES[name]
    runs, others = ({run.seed: run for run in each.results()} for each in (cell, other))
    seeds = sorted(runs.keys() & others.keys())
    a, b = (values([own[seed] for seed in seeds], measure) for own in (runs, others))
    both = np.isfinite(a) & np.isfinite(b)
    pairs = int(both.sum())
    result = paired(a[both].tolist(), b[both].tolist()) if pairs > 1 else None
    d = apart(a, b, worst=-math.inf if measure.decibels else math.inf)
    known = len(seeds) > 1 and bool(d.any() or pairs)
    p = p_of(d) if known else math.nan
    side = int(np.sign(scores(d).sum()))
    return Difference(cell.target, cell.arm, reference, name, result, pairs, len(seeds), side, p)


def apart(
    a: Float[np.ndarray, " S"], b: Float[np.ndarray, " S"], *, worst: float
) -> Float[np.ndarray, " S"]:
    """a - b, seed by seed: a run that failed (NaN) is infinitely far on the worse side of one that
    did not, and two that failed are level."""
    lost, other = np.isnan(a), np.isnan(b)
    return np.select([lost & other, lost, other], [0.0, worst, -worst], a - b)


def scores(d: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """d itself; where one is infinite, ranks of all by size, with their signs."""
    return d if np.isfinite(d).all() else np.sign(d) * rankdata(np.abs(d))


def p_of(d: Float[np.ndarray, " S"]) -> float:
    """Of the sign-flip test on `scores`: to leave out seeds that failed would choose those that
    went well."""
    return sign_flip(scores(d))


def ranked(cells: Sequence[Cell], target: str) -> list[tuple[Cell, Mean]]:
    """Cells of a target by the mean of its main measure, the best first; those of which more than
    half of the runs failed last, since that mean is of the others."""
    measure = MEASURES[MAIN[kind_of(target)]]
    own = [(cell, mean_of(cell.results(), measure)) for cell in cells if cell.target == target]
    sign = -1 if measure.decibels else 1

    def place(pair: tuple[Cell, Mean]) -> tuple[bool, bool, float]:
        cell, mean = pair
        return 2 * cell.failed > len(cell.results()), math.isnan(mean.mean), sign * mean.mean

    return sorted(own, key=place)


def remarks(cells: Sequence[Cell], found: Sequence[Difference], reference: str) -> list[str]:
    """What there is to know before reading."""
    lines = [_order(cells, target, found) for target in dict.fromkeys(c.target for c in cells)]
    seeds = min(len(cell.results()) for cell in cells)
    count = max((sum(each.measure == name for each in found) for name in MEASURES), default=0)
    if seeds > 1 and count * smallest_p(seeds) > LEVEL:
        lines.append(
            f"{seeds} seeds give no p below {smallest_p(seeds):.2g}, and Holm multiplies the least"
            f" of up to {count} by their number: not every difference can be significant after it."
        )
    failed = [
        f"{cell.arm} on {cell.target} ({cell.failed} of {len(cell.results())})"
        for cell in cells
        if cell.failed
    ]
    lines.append(
        "Runs that failed, by diverging or by ending no nearer to the points trained on than their"
        f" mean is: {', '.join(failed) or 'none'}."
    )
    edges = [f"{cell.arm} on {cell.target}" for cell in cells if cell.searched.at_edge]
    if edges:
        lines.append(f"The best rate is at the edge of what was tried: {'; '.join(edges)}.")
    return lines


def _order(cells: Sequence[Cell], target: str, found: Sequence[Difference]) -> str:
    name = MAIN[kind_of(target)]
    digits = 2 if MEASURES[name].decibels else 4
    shown = ", ".join(
        cell.arm
        + ("" if math.isnan(mean.mean) else f" {mean.mean:.{digits}f}")
        + (f" ({cell.failed} of {len(cell.results())} failed)" if cell.failed else "")
        for cell, mean in ranked(cells, target)
    )
    sides: dict[str, list[str]] = {"better": [], "worse": [], "no difference found": []}
    for each in (e for e in found if (e.target, e.measure) == (target, name)):
        sides.setdefault(each.verdict, []).append(each.arm)
    told = "; ".join(f"{side}: {', '.join(arms)}" for side, arms in sides.items() if arms)
    beside = f" Beside {found[0].reference} ({told})." if told else ""
    return f"**{target}, {name} {MEASURES[name].about}, the best first: {shown}.**{beside}"


def record(cells: Sequence[Cell], found: Sequence[Difference]) -> dict[str, Any]:
    """For coordinates.json; a difference without numbers is null."""
    return {
        "measures": {name: each.about for name, each in MEASURES.items()},
        "cells": [
            {
                "target": cell.target,
                "arm": cell.arm,
                "parameters": cell.parameters,
                "search": vars(cell.searched),
                "failed": cell.failed,
                **{
                    name: {
                        **vars(mean_of(cell.results(), each)),
                        "seeds": [each.take(run) for run in cell.results()],
                    }
                    for name, each in measures(cell.target).items()
                },
            }
            for cell in cells
        ],
        "differences": [
            {**vars(each), "found": vars(each.found) if each.found else None} for each in found
        ],
    }
