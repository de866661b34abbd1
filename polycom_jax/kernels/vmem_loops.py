"""Loops over a block in VMEM, a few vector registers at a time.

A block is walked in groups of rows, and a group in pieces of 128 lanes, so that what is computed
stays in registers and code does not grow with the block. Names: G rows of a group, L = 128 lanes.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from polycom_jax.kernels.tpu_blocks import GROUP, LANES

_UNROLL = 8
"""Pieces a loop step, with which PolyNorm takes about as long as HBM
(experiments/results/speed/README.md, "Loops in VMEM")."""

_STEP = _UNROLL * LANES


def group_height(rows: int) -> int:
    """Rows of each group of a block of `rows` rows."""
    return min(GROUP, rows)


def each_group(rows: int, body: Callable[[Any, int, Any], Any], carry: Any = None) -> Any:
    """body(first_row, height, carry) -> carry for the groups of a block of that many rows."""
    height = group_height(rows)
    if rows == height:
        return body(0, height, carry)

    def step(g: Any, carry: Any) -> Any:
        return body(pl.multiple_of(g * height, height), height, carry)

    return jax.lax.fori_loop(0, rows // height, step, carry)


Terms = Callable[[Any, int], list[Float[Array, "G L"]]]
"""terms(start, size): what is reduced, for lanes start ... start + size."""


def _fold(
    width: int, terms: Terms, both: Callable[[Array, Array], Array], lanes: Callable[..., Array]
) -> list[Float[Array, "G 1"]]:
    """Each term folded over the lanes of a group; a last piece of under 128 lanes by itself.

    Each step's pieces are folded first: a long sum of one after the other would round off more.
    """

    def fold(one: list[Array], other: list[Array]) -> list[Array]:
        return [both(a, b) for a, b in zip(one, other, strict=True)]

    def step(start: Any, pieces: int) -> list[Array]:
        return reduce(fold, (terms(start + j * LANES, LANES) for j in range(pieces)))

    parts: list[list[Array]] = []
    steps, left = _steps(width)
    if steps:

        def body(k: Any, carry: list[Array]) -> list[Array]:
            return fold(carry, step(pl.multiple_of(k * _STEP, _STEP), _UNROLL))

        parts.append(jax.lax.fori_loop(1, steps, body, step(0, _UNROLL)))
    if left:
        parts.append(step(steps * _STEP, left))
    reduced = [reduce(fold, parts)] if parts else []
    if width % LANES:
        reduced.append(terms(width - width % LANES, width % LANES))
    each = [[lanes(v, axis=-1, keepdims=True) for v in part] for part in reduced]
    return reduce(fold, each)


def _steps(width: int) -> tuple[int, int]:
    """(whole steps, whole pieces after them)."""
    return divmod(width // LANES, _UNROLL)


def sum_lanes(width: int, terms: Terms) -> list[Float[Array, "G 1"]]:
    """The sum of each term over a group's rows."""
    return _fold(width, terms, jnp.add, jnp.sum)


def max_lanes(width: int, terms: Terms) -> list[Float[Array, "G 1"]]:
    """The largest value of each term in a group's rows."""
    return _fold(width, terms, jnp.maximum, jnp.max)


def write_lanes(width: int, write: Callable[[Any, int], None]) -> None:
    """write(start, size) for every piece of a group."""
    steps, left = _steps(width)

    def step(k: Any, carry: None) -> None:
        for j in range(_UNROLL):
            write(pl.multiple_of(k * _STEP, _STEP) + j * LANES, LANES)

    if steps:
        jax.lax.fori_loop(0, steps, step, None)
    for piece in range(left):
        write(steps * _STEP + piece * LANES, LANES)
    if width % LANES:
        write(width - width % LANES, width % LANES)
