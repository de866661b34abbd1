"""Warm-up, constant rate, linear decay: a trunk that runs of several lengths branch off.

A decayed point is only ever compared with a decayed one (Hagele et al. 2024, arXiv 2405.18392).
"""

from collections.abc import Sequence

DECAYS_OVER = 0.2
"""Share of a run over which its rate falls to zero."""
WARMS_UP_OVER = 0.05
"""Share of the longest run over which the rate rises; the others share that rise."""


def decay_start(length: int) -> int:
    """Updates of a run of `length` that belong to the trunk."""
    return length - max(1, round(length * DECAYS_OVER))


def warmup_steps(lengths: Sequence[int]) -> int:
    """Updates of the rise: at most the shortest trunk."""
    return max(1, min(round(max(lengths) * WARMS_UP_OVER), decay_start(min(lengths))))


def rate_share(update: int, lengths: Sequence[int], length: int | None) -> float:
    """The rate of an update (the first is 1), in units of the peak.

    min(1, t / w) on the trunk (`length` None); on a branch of n updates that leaves it behind s,
    (n - t + 1) / (n - s).
    """
    if length is None:
        return min(1.0, update / warmup_steps(lengths))
    return (length - update + 1) / (length - decay_start(length))


def updates(lengths: Sequence[int]) -> int:
    """Updates of a run with these decayed lengths: the trunk, and every branch's own."""
    return decay_start(max(lengths)) + sum(length - decay_start(length) for length in lengths)
