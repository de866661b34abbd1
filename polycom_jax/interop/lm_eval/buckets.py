"""Requests of similar length together: few shapes, so that few programs are compiled."""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int

SHORTEST = 32
"""Tokens of the shortest bucket: below, another program costs more than the filling."""


def bucket(length: int, limit: int) -> int:
    """The shape for `length` tokens: a power of two, `SHORTEST` at least, `limit` at most."""
    return min(max(SHORTEST, 1 << (length - 1).bit_length()), limit)


def batches(shapes: Sequence[Hashable], size: int) -> list[list[int]]:
    """Indices of requests of equal shape, up to `size` at a time, the greatest shape first.

    So what does not fit the memory fails at once, and the time left is not underestimated.
    """
    groups: dict = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return [
        indices[start : start + size]
        for _, indices in sorted(groups.items(), reverse=True)
        for start in range(0, len(indices), size)
    ]


def filled(rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> Int[np.ndarray, "B T"]:
    """The rows, each filled with zeros behind its end, and rows of zeros below."""
    out = np.zeros(shape, np.int32)
    for target, row in zip(out, rows, strict=False):
        target[: len(row)] = row
    return out
