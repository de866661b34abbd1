"""Laws of several arms, and the bands that seeds leave: the bootstrap over paired seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import stats

from experiments.compare.across.cells import Cell
from experiments.compare.across.law import Form, Law, Points, fit
from experiments.compare.studies import REFERENCE
from experiments.run.statistics import LEVEL

RESAMPLES = 500
"""Of seeds."""
LEAST_SEEDS = 2
"""In common, of a folder: resamples of one seed are all alike, and would say that it is certain."""
SEED = 0
"""Of its draws, so that a report comes out the same twice."""


@dataclass(frozen=True)
class Band:
    """A number of a fit, and its interval by the bootstrap.

    Attributes:
        value: of the fit.
        low: LEVEL / 2 quantile over resampled fits.
        high: 1 - LEVEL / 2 quantile.
    """

    value: float
    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        """Whether zero lies in it."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Fit:
    """A law and its resamples.

    Attributes:
        law: the fit.
        points: what it was fitted to.
        resampled: the fits of resampled seeds; those of several laws are of the same resamples,
            index by index.
    """

    law: Law
    points: Points
    resampled: list[Law]


@dataclass(frozen=True)
class Fitted:
    """Laws of one form, and those of resampled seeds.

    Attributes:
        form: of all of them.
        fits: arm -> its fit to all that it has.
        beside: arm -> its fit and the reference's, both to the folders that both have. A law of
            long runs beside one of short ones would say what the length does, not the arm.
    """

    form: Form
    fits: Mapping[str, Fit]
    beside: Mapping[str, tuple[Fit, Fit]]

    def pairs(self, arm: str) -> list[tuple[Law, Law]]:
        """Laws of an arm and of the reference: the fit, then those of each resample."""
        own, reference = self.beside[arm]
        rest = zip(own.resampled, reference.resampled, strict=True)
        return [(own.law, reference.law), *rest]

    def band(self, arm: str, number: Callable[[Law, Law, float, float], float],
             parameters: float, tokens: float) -> Band:  # fmt: skip
        """A number of an arm beside the reference at one size and length."""
        value, *rest = (number(*pair, parameters, tokens) for pair in self.pairs(arm))
        return band(value, rest)


def band(value: float, resampled: Sequence[float]) -> Band:
    """The band of a number; of infinite ones, the quantile is infinite where they reach it."""
    low, high = np.quantile(
        np.asarray(resampled, np.float64), (LEVEL / 2, 1 - LEVEL / 2), method="inverted_cdf"
    )
    return Band(value, float(low), float(high))


@dataclass(frozen=True)
class Shared:
    """The seeds that a fit rests on: points are means over them, resamples are drawn from them.

    Attributes:
        arms: name of a folder -> arms whose runs there are fitted.
        seeds: name of a folder -> those that all of these arms have.
        left_out: "arm in folder" -> why its runs there are not fitted.
    """

    arms: Mapping[str, Sequence[str]]
    seeds: Mapping[str, Sequence[int]]
    left_out: Mapping[str, str]


def shared(cells: Sequence[Cell], arms: Sequence[str]) -> Shared:
    """The seeds that arms have in common in each folder.

    An arm of which a run diverged, or that would leave fewer than `LEAST_SEEDS` of them, is left
    out in that folder; those with most seeds in common with the reference are taken first.
    """
    kept: dict[str, list[str]] = {}
    seeds: dict[str, list[int]] = {}
    left_out: dict[str, str] = {}
    for cell in cells:
        own: list[str] = []
        for arm in _by_overlap(cell, arms):
            if why := _unfit(cell, arm, own):
                left_out[f"{arm} in {cell.name}"] = why
            else:
                own.append(arm)
        if own:
            kept[cell.name], seeds[cell.name] = own, cell.seeds(*own)
    return Shared(kept, seeds, left_out)


def _by_overlap(cell: Cell, arms: Sequence[str]) -> list[str]:
    there = [arm for arm in arms if arm in cell.arms]
    reference = set(cell.arms[REFERENCE].good) if REFERENCE in cell.arms else set[int]()

    def place(arm: str) -> tuple[bool, int]:
        return arm != REFERENCE, -len(reference & {*cell.arms[arm].good})

    return sorted(there, key=place)


def _unfit(cell: Cell, arm: str, others: Sequence[str]) -> str:
    """Why an arm is not fitted beside others of a folder; empty: it is."""
    found = cell.arms[arm]
    if found.diverged:
        return f"{found.diverged} of {len(found.runs)} runs diverged."
    common = len(cell.seeds(arm, *others))
    beside = f" in common with {', '.join(others)}" if others else ""
    return "" if common >= LEAST_SEEDS else (
        f"It has {common} {'seed' if common == 1 else 'seeds'}{beside}, and a band needs"
        f" {LEAST_SEEDS}."
    )  # fmt: skip


def points_of(cells: Sequence[Cell], arm: str, common: Shared) -> Points:
    """Means over the common seeds of every length of the cells that have the arm; N is the
    reference's."""
    parameters, tokens, losses, weights = [], [], [], []
    for cell in having(cells, common, arm):
        seeds = common.seeds[cell.name]
        parameters += [cell.parameters] * len(cell.tokens)
        tokens += cell.tokens
        losses += cell.losses(arm, seeds).mean(0).tolist()
        weights += [len(seeds)] * len(cell.tokens)
    return Points(*(np.array(x, np.float64) for x in (parameters, tokens, losses, weights)))


def fitted(
    cells: Sequence[Cell], arms: Sequence[str], form: Form, resamples: int = RESAMPLES
) -> Fitted:
    """Fits each arm to the cells that have it (`shared`), each pair of an arm and the reference to
    those that have both, and all again to resampled seeds.

    Seeds are drawn anew in each folder, for all arms alike, so that pairs stay pairs and lengths of
    one trunk stay together. What a mean of n seeds departs by is stretched (`_stretch`), so that
    bands are not too narrow where seeds are few.
    """
    common = shared(cells, arms)
    # An arm and the folders, by index, that it is fitted to: equal ones are fitted once.
    alone = {arm: (arm, *_places(cells, common, arm)) for arm in arms}
    pairs = {
        arm: tuple((one, *_places(cells, common, arm, REFERENCE)) for one in (arm, REFERENCE))
        for arm in arms
        if arm != REFERENCE
    }
    tasks = dict.fromkeys((*alone.values(), *(task for pair in pairs.values() for task in pair)))
    parts = {task: [cells[place] for place in task[1:]] for task in tasks}
    points = {task: points_of(parts[task], task[0], common) for task in tasks}
    fits = {task: Fit(fit(points[task], form), points[task], []) for task in tasks}
    rng = np.random.default_rng(SEED)
    for _ in range(resamples):
        drawn = {name: rng.choice(seeds, len(seeds)) for name, seeds in common.seeds.items()}
        for task, found in fits.items():
            shifts = [
                _shift(cell, task[0], common.seeds[cell.name], drawn[cell.name])
                for cell in parts[task]
            ]
            moved = replace(found.points, loss=found.points.loss + np.concatenate(shifts))
            found.resampled.append(fit(moved, form, found.law))
    return Fitted(
        form,
        {arm: fits[task] for arm, task in alone.items()},
        {arm: (fits[own], fits[reference]) for arm, (own, reference) in pairs.items()},
    )


def _places(cells: Sequence[Cell], common: Shared, *arms: str) -> list[int]:
    """Indices of the cells in which all of these arms are fitted."""
    return [i for i, cell in enumerate(cells) if {*arms} <= {*common.arms.get(cell.name, ())}]


def having(cells: Sequence[Cell], common: Shared, *arms: str) -> list[Cell]:
    """The cells in which all of these arms are fitted."""
    return [cells[place] for place in _places(cells, common, *arms)]


def _shift(cell: Cell, arm: str, seeds: Sequence[int], drawn: np.ndarray) -> np.ndarray:
    """What drawing these seeds changes in the means of a cell's lengths."""
    moved = cell.losses(arm, drawn.tolist()).mean(0) - cell.losses(arm, seeds).mean(0)
    return _stretch(len(seeds)) * moved


@cache
def _stretch(seeds: int) -> float:
    """What makes the band of a mean of n seeds Student's interval: sqrt(n / (n - 1)) for the spread
    that resampling leaves out, and the quotient of Student's and the normal quantile."""
    wide = 1 - LEVEL / 2
    quantiles = stats.t.ppf(wide, seeds - 1) / stats.norm.ppf(wide)
    return float(quantiles) * math.sqrt(seeds / (seeds - 1))
