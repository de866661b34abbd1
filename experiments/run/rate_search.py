"""The learning rate of each arm: the best of a grid that grows until its best is not at an edge."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

FIRST_SEED = 1_000_000
"""Seeds of the search; those of the results are 0, 1, 2 ..., so nothing is chosen on what it is
judged by."""

MOST_EXTENSIONS = 6
"""Rates that a grid may grow by. A best that is at an edge then is reported as such."""


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        rates: that were tried, ascending.
        losses: mean held-out loss of each over the search's seeds; infinite where one diverged.
        best: the rate of the lowest; of a folder whose results are at another one, that.
        at_edge: whether that is the first or last one.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    best: float
    at_edge: bool

    @property
    def better(self) -> float | None:
        """A rate that was tried and has a lower loss than `best`; None: there is none."""
        known = dict(zip(self.rates, self.losses, strict=True))
        least = min(known, key=known.__getitem__, default=None)
        beaten = least is not None and known[least] < known.get(self.best, -np.inf)
        return least if beaten else None


Untried = Callable[[Mapping[float, float]], Sequence[float]]
"""Rate -> loss, of those that were tried -> the rates to try next; none: the search has ended."""


def search(grid: Sequence[float], score: Callable[[float], float]) -> Search:
    """Scores the grid, then goes on by its outermost ratio beyond the edge that is the best.

    Args:
        grid: ascending rates, two or more.
        score: rate -> loss, lower is better; called once a rate.
    """
    return searched(growing(grid), score)


def searched(untried: Untried, score: Callable[[float], float]) -> Search:
    """Scores rates until none is left to try; `score` as in `search`."""
    scores: dict[float, float] = {}
    while rates := untried(scores):
        scores |= {rate: score(rate) for rate in rates}
    return found(scores)


def growing(grid: Sequence[float]) -> Untried:
    """Those of `search`: of the grid, then beyond its edges."""

    def untried(scores: Mapping[float, float]) -> Sequence[float]:
        if left := [rate for rate in grid if rate not in scores]:
            return left
        following = _beyond(scores) if len(scores) < len(grid) + MOST_EXTENSIONS else None
        return [] if following is None or following in scores else [following]

    return untried


def halving(rate: float) -> Untried:
    """A rate that comes from elsewhere, and half of it; halves go on while they are no worse.

    Args:
        rate: of smaller models, where it was searched: no larger one is tried.
    """

    def untried(scores: Mapping[float, float]) -> Sequence[float]:
        if left := [r for r in (rate / 2, rate) if r not in scores]:
            return left
        rates = sorted(scores)
        best = min(rates, key=lambda r: scores[r])
        return [best / 2] if best == rates[0] and len(scores) < MOST_EXTENSIONS else []

    return untried


def found(scores: Mapping[float, float]) -> Search:
    """The best of these: rate -> loss."""
    rates = tuple(sorted(scores))
    losses = tuple(scores[rate] for rate in rates)
    at = int(np.argmin(losses))
    return Search(rates, losses, rates[at], at in (0, len(rates) - 1))


class Scored(Protocol):
    """A finished run, as far as a search reads it; a lower score is better."""

    @property
    def seed(self) -> int:
        """From `FIRST_SEED` on: of a search."""
        ...

    @property
    def rate(self) -> float:
        """Its learning rate."""
        ...

    @property
    def score(self) -> float:
        """Lower is better."""
        ...


Scores = Mapping[float, Mapping[int, float]]
"""Rate -> seed of the search -> score."""


def tried(runs: Iterable[Scored]) -> Scores:
    """Of those runs that belong to a search, by their seeds."""
    scores: dict[float, dict[int, float]] = {}
    for run in runs:
        if run.seed >= FIRST_SEED:
            scores.setdefault(run.rate, {})[run.seed] = run.score
    return scores


def shared_seeds(scores: Scores) -> set[int]:
    """Those with which all rates were tried: rates are compared by these alone."""
    return set[int].intersection(*map(set, scores.values())) if scores else set()


def compared(scores: Scores) -> Search:
    """The rates that were tried, by their means over shared seeds."""
    seeds = shared_seeds(scores)
    return found(
        {r: float(np.mean([own[s] for s in own if s in seeds])) for r, own in scores.items()}
    )


def _beyond(scores: Mapping[float, float]) -> float | None:
    """The next rate to try; None: the best one is inside."""
    rates = sorted(scores)
    best = min(rates, key=lambda rate: scores[rate])
    if best == rates[0]:
        return float(f"{rates[0] ** 2 / rates[1]:.6g}")
    if best == rates[-1]:
        return float(f"{rates[-1] ** 2 / rates[-2]:.6g}")
    return None
