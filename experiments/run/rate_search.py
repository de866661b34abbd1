"""The learning rate of each arm: the best of a grid that grows until its best is not at an edge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
        best: the rate of the lowest.
        at_edge: whether that is the first or last one.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    best: float
    at_edge: bool


def search(grid: Sequence[float], score: Callable[[float], float]) -> Search:
    """Scores the grid, then goes on by its outermost ratio beyond the edge that is the best.

    Args:
        grid: ascending rates, two or more.
        score: rate -> loss, lower is better; called once a rate.
    """
    scores = {rate: score(rate) for rate in grid}
    for _ in range(MOST_EXTENSIONS):
        following = _beyond(scores)
        if following is None:
            break
        scores[following] = score(following)
    return found(scores)


def found(scores: Mapping[float, float]) -> Search:
    """The best of these: rate -> loss."""
    rates = tuple(sorted(scores))
    losses = tuple(scores[rate] for rate in rates)
    at = int(np.argmin(losses))
    return Search(rates, losses, rates[at], at in (0, len(rates) - 1))


def checked(rate: float, score: Callable[[float], float]) -> Search:
    """Scores a rate that comes from elsewhere, and half of it; halves go on while they are better.

    Args:
        rate: of smaller models, where it was searched: no larger one is tried.
        score: rate -> loss, lower is better; called once a rate.
    """
    scores = {r: score(r) for r in (rate / 2, rate)}
    while min(scores, key=lambda r: scores[r]) == min(scores) and len(scores) < MOST_EXTENSIONS:
        following = min(scores) / 2
        scores[following] = score(following)
    return found(scores)


def _beyond(scores: dict[float, float]) -> float | None:
    """The next rate to try; None: the best one is inside."""
    rates = sorted(scores)
    best = min(rates, key=lambda rate: scores[rate])
    if best == rates[0]:
        return float(f"{rates[0] ** 2 / rates[1]:.6g}")
    if best == rates[-1]:
        return float(f"{rates[-1] ** 2 / rates[-2]:.6g}")
    return None
