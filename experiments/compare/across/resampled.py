"""Laws of several arms, and the bands that seeds leave: the bootstrap over paired seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
class Fitted:
    """Laws of one form, and those of resampled seeds.

    Attributes:
        form: of all of them.
        laws: arm -> the fit.
        points: arm -> what it was fitted to.
        resampled: arm -> the fits of the same resamples, index by index.
    """

    form: Form
    laws: Mapping[str, Law]
    points: Mapping[str, Points]
    resampled: Mapping[str, Sequence[Law]]

    @property
    def others(self) -> list[str]:
        """Arms but the reference."""
        return [name for name in self.laws if name != REFERENCE]

    def pairs(self, arm: str) -> list[tuple[Law, Law]]:
        """Resampled laws of an arm and of the reference."""
        return list(zip(self.resampled[arm], self.resampled[REFERENCE], strict=True))

    def band(self, arm: str, number: Callable[[Law, Law, float, float], float],
             parameters: float, tokens: float) -> Band:  # fmt: skip
        """A number of an arm beside the reference at one size and length."""
        return band(
            number(self.laws[arm], self.laws[REFERENCE], parameters, tokens),
            [number(one, other, parameters, tokens) for one, other in self.pairs(arm)],
        )


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
    for cell in _having(cells, arm, common):
        seeds = common.seeds[cell.name]
        parameters += [cell.parameters] * len(cell.tokens)
        tokens += cell.tokens
        losses += cell.losses(arm, seeds).mean(0).tolist()
        weights += [len(seeds)] * len(cell.tokens)
    return Points(*(np.array(x, np.float64) for x in (parameters, tokens, losses, weights)))


def fitted(
    cells: Sequence[Cell], arms: Sequence[str], form: Form, resamples: int = RESAMPLES
) -> Fitted:
    """Fits each arm to the cells that have it (`shared`), and again to resampled seeds.

    Seeds are drawn anew in each folder, for all arms alike, so that pairs stay pairs and lengths of
    one trunk stay together. What a mean of n seeds departs by is stretched (`_stretch`), so that
    bands are not too narrow where seeds are few.
    """
    common = shared(cells, arms)
    points = {arm: points_of(cells, arm, common) for arm in arms}
    laws = {arm: fit(points[arm], form) for arm in arms}
    rng = np.random.default_rng(SEED)
    resampled: dict[str, list[Law]] = {arm: [] for arm in arms}
    for _ in range(resamples):
        drawn = {name: rng.choice(seeds, len(seeds)) for name, seeds in common.seeds.items()}
        for arm in arms:
            shifts = [
                _shift(cell, arm, common.seeds[cell.name], drawn[cell.name])
                for cell in _having(cells, arm, common)
            ]
            moved = replace(points[arm], loss=points[arm].loss + np.concatenate(shifts))
            resampled[arm].append(fit(moved, form, laws[arm]))
    return Fitted(form, laws, points, resampled)


def _having(cells: Sequence[Cell], arm: str, common: Shared) -> list[Cell]:
    return [cell for cell in cells if arm in common.arms.get(cell.name, ())]


def _shift(cell: Cell, arm: str, seeds: Sequence[int], drawn: np.ndarray) -> np.ndarray:
    """What drawing these seeds changes in the means of a cell's lengths."""
    moved = cell.losses(arm, drawn.tolist()).mean(0) - cell.losses(arm, seeds).mean(0)
    return _stretch(len(seeds)) * moved


def _stretch(seeds: int) -> float:
    """What makes the band of a mean of n seeds Student's interval: sqrt(n / (n - 1)) for the spread
    that resampling leaves out, and the quotient of Student's and the normal quantile."""
    wide = 1 - LEVEL / 2
    quantiles = stats.t.ppf(wide, seeds - 1) / stats.norm.ppf(wide)
    return float(quantiles) * math.sqrt(seeds / (seeds - 1))
