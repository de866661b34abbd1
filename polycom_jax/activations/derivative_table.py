"""Piecewise constant derivatives of few values, the best ones in the mean square.

With borders s_1 < ... < s_{n-1} between s_0 = -A and s_n = A, the values that minimise

    integral of (f'(x) - v(x))^2 over [-A, A]

are the means of f', v_i = (f(s_{i+1}) - f(s_i)) / (s_{i+1} - s_i), and what they leave is least
where sum_i (f(s_{i+1}) - f(s_i))^2 / (s_{i+1} - s_i) is greatest: values of f alone decide.

Reference: Novikov et al., "Few-bit Backward", ICML 2023, which has this criterion, A = 100, and
searches borders by gradient steps; here dynamic programming finds them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from polycom_jax._errors import require

SPAN = 100.0
"""A: tables are made for inputs from -A to A, as the published ones."""

_POINTS = 2**17
"""Steps of the grid on which borders lie; by 1/12000 near zero, wider further out."""

_STRIDES = (256, 16, 1)
"""Borders are searched on every 256th point, then on finer ones beside those that were found."""

_SETTLED = 0.01
"""By how much of its greatest value the derivative may still change in the outer half."""


@dataclass(frozen=True)
class DerivativeTable:
    """What stands for a derivative: `levels[i]` where x is above `i` of the `borders`.

    Attributes:
        borders: 2^bits - 1 numbers, ascending.
        levels: 2^bits numbers.
    """

    borders: tuple[float, ...]
    levels: tuple[float, ...]


@cache
def derivative_table(
    f: Callable[[Array], Array], bits: int, name: str = "the function"
) -> DerivativeTable:
    """The best table of 2^bits levels for f' on [-SPAN, SPAN].

    Args:
        f: element-wise, in float64 for float64.
        bits: of a level's index.
        name: of f, in messages.

    Raises:
        InputError: f' has not settled towards the ends, so that no such table holds it.
    """
    x = np.sinh(np.linspace(-1, 1, _POINTS + 1) * np.arcsinh(SPAN))
    x[_POINTS // 2] = 0  # where most kinks are
    y = _evaluated(f, x)
    _check_settled(x, y, bits, name)
    at = _best_borders(x, y, 2**bits - 1)
    ends = np.concatenate([[0], at, [_POINTS]])
    levels = np.diff(y[ends]) / np.diff(x[ends])
    return DerivativeTable(tuple(x[at].tolist()), tuple(levels.tolist()))


def _evaluated(f: Callable[[Array], Array], x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """f(x) in float64, computed by a thread that knows nothing of the trace or mesh around this."""

    def run() -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(f(jnp.asarray(x)))

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _check_settled(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], bits: int, name: str
) -> None:
    """Raises `InputError` where f' is not nearly constant in the outer half of either side."""
    middle, slope = (x[1:] + x[:-1]) / 2, np.diff(y) / np.diff(x)
    changes = [np.ptp(slope[side * middle > SPAN / 2]) for side in (-1, 1)]
    settled = max(changes) <= _SETTLED * np.max(np.abs(slope))  # false of what is not a number, too
    require(
        bool(settled),
        f"bits={bits}: the derivative of {name} still changes beyond |x| = {SPAN / 2:.0f}, so that"
        " no table of few levels holds it; leave bits out.",
    )


def _best_borders(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], count: int
) -> Int[np.ndarray, " B"]:
    """Indices of the borders that leave the least error."""
    last = x.size - 1
    at = _chosen(x, y, [np.arange(_STRIDES[0], last, _STRIDES[0])] * count)
    for wide, stride in pairwise(_STRIDES):
        near = np.arange(-2 * wide, 2 * wide + 1, stride)
        at = _chosen(x, y, [np.unique(np.clip(i + near, 1, last - 1)) for i in at])
    return at


def _chosen(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], candidates: Sequence[np.ndarray]
) -> Int[np.ndarray, " B"]:
    """The best border among each of the candidates, by dynamic programming from left to right."""

    def gain(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        length, rise = x[end] - x[start][:, None], y[end] - y[start][:, None]
        valid = length > 0
        return np.where(valid, rise**2 / np.where(valid, length, 1), -np.inf)

    best, came_from = gain(np.array([0]), candidates[0])[0], []
    for before, these in pairwise(candidates):
        total = best[:, None] + gain(before, these)
        came_from.append(np.argmax(total, axis=0))
        best = np.max(total, axis=0)
    index = int(np.argmax(best + gain(candidates[-1], np.array([x.size - 1]))[:, 0]))
    path = [index]
    for back in reversed(came_from):
        path.append(back[path[-1]])
    return np.array([c[i] for c, i in zip(candidates, reversed(path), strict=True)])
