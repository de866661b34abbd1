"""What one program of a grouped product does, in Pallas-Triton."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from polycom_jax.kernels import triton
from polycom_jax.kernels.grouped_matmul.tile import Tile

Ref = Any
"""A Pallas reference: an array in the card's memory."""


class _Span(NamedTuple):
    """Places that stand side by side along one dimension, some perhaps outside of it."""

    places: Any
    inside: Bool[Array, " N"]


def _span(first: Any, size: int, most: Any) -> _Span:
    """`size` places from `first` on, of which at most `most` are inside."""
    return _Span(pl.ds(first, size), jnp.arange(size, dtype=jnp.int32) < most)


def _load(ref: Ref, *at: Any) -> Float[Array, "A B"]:
    """What stands at the last two of `at`, spans; zeros where these are outside."""
    places, inside = _part(*at)
    return triton.load(ref.at[places], inside)


def _store(x: Float[Array, "A B"], ref: Ref, *at: Any) -> None:
    places, inside = _part(*at)
    triton.store(ref.at[places], x.astype(ref.dtype), inside)


def _part(*at: Any) -> tuple[tuple[Any, ...], Bool[Array, "A B"]]:
    *lead, rows, columns = at
    inside = rows.inside[:, None] & columns.inside[None, :]
    return (*lead, rows.places, columns.places), inside


def _product(
    a: Float[Array, "_ _"], b: Float[Array, "_ _"], contract: tuple[int, int]
) -> Float[Array, "_ _"]:
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def rows(
    group: Int[Ref, " N"],
    first: Int[Ref, " N"],
    filled: Int[Ref, " N"],
    x: Float[Ref, "R K"],
    w: Float[Ref, "E _ _"],
    out: Float[Ref, "R M"],
    *,
    tile: Tile,
    transposed: bool,
) -> None:
    """A tile of rows of one group times columns of its matrix, or of that one's transpose.

    Programs that follow each other share rows, so that they find these in the cache.
    """
    depth, width = x.shape[1], out.shape[1]
    across = pl.cdiv(width, tile.columns)
    index, part = jnp.divmod(pl.program_id(0), jnp.int32(across))
    count = filled[index]

    @pl.when(count > 0)
    def _() -> None:
        matrix, own = group[index], _span(first[index], tile.rows, count)
        left = part * tile.columns
        columns = _span(left, tile.columns, width - left)

        def step(k: Array, total: Array) -> Array:
            inner = _span(k * tile.depth, tile.depth, depth - k * tile.depth)
            a = _load(x, own, inner)
            if transposed:
                return total + _product(a, _load(w, matrix, columns, inner), (1, 1))
            return total + _product(a, _load(w, matrix, inner, columns), (1, 0))

        total = jnp.zeros((tile.rows, tile.columns), jnp.float32)
        total = jax.lax.fori_loop(0, pl.cdiv(depth, tile.depth), step, total)
        _store(total, out, own, columns)


def matrices(
    first: Int[Ref, " E"],
    sizes: Int[Ref, " E"],
    x: Float[Ref, "R K"],
    y: Float[Ref, "R M"],
    out: Float[Ref, "E K M"],
    *,
    tile: Tile,
) -> None:
    """A tile of one group's sum over its rows of x^T y, in the order of the rows."""
    _, height, width = out.shape
    down, across = pl.cdiv(height, tile.rows), pl.cdiv(width, tile.columns)
    index, part = jnp.divmod(pl.program_id(0), jnp.int32(across))
    group, upper = jnp.divmod(index, jnp.int32(down))
    top, left = upper * tile.rows, part * tile.columns
    mine, columns = _span(top, tile.rows, height - top), _span(left, tile.columns, width - left)
    start, size = first[group], sizes[group]

    def step(k: Array, total: Array) -> Array:
        own = _span(start + k * tile.depth, tile.depth, size - k * tile.depth)
        return total + _product(_load(x, own, mine), _load(y, own, columns), (0, 0))

    total = jnp.zeros((tile.rows, tile.columns), jnp.float32)
    total = jax.lax.fori_loop(0, pl.cdiv(size, jnp.int32(tile.depth)), step, total)
    _store(total, out, group, mine, columns)
