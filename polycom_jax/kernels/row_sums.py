"""Sums over rows of several arrays, in forms that XLA's backends run in few passes."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PARTS = 8
"""Parts that a TPU's row is cut into, see `sums_in_parts`."""

LANES = 128
"""Elements in a row of a TPU's vector register, of any dtype."""

RUN = 16
"""On a CPU, this many runs of as many elements are added to each other at once: LLVM unrolls and
vectorises that many and no more. 16 float32 are a cache line, so memory is read in order."""

LEAST_PART = 1024
"""Rows wider than this are reduced in parts at least as wide, which are then united, where the
width divides: a long chain of additions loses digits."""

TERMS = 5
"""`column_sums` forms at most this many at once."""

NARROW = 64
"""Rows up to this wide are summed at once: there is too little to vectorise."""


@jax.custom_jvp
def row_sums(terms: Sequence[Float[Array, "*S F"]]) -> list[Float[Array, "*S 1"]]:
    """[sum(t, axis=-1, keepdims=True) for t in terms], the terms formed and read once.

    XLA's CPU backend hands a sum of one array to a library, and writes each term to memory for it;
    a reduction with several operands stays in XLA's own loops, into which the terms are fused.
    """
    width = terms[0].shape[-1]
    if width <= NARROW:
        return [s[..., None] for s in _add(terms)]
    lanes = min(RUN, width // RUN)
    runs = width // (RUN * lanes)
    whole = runs * RUN * lanes
    added = _add(
        [t[..., :whole].reshape(*t.shape[:-1], runs, RUN, lanes) for t in terms], axes=(-2,)
    )
    sums = row_sums([t.reshape(*t.shape[:-2], runs * lanes) for t in added])
    if whole < width:
        rest = row_sums([t[..., whole:] for t in terms])
        sums = [s + r for s, r in zip(sums, rest, strict=True)]
    return sums


def _added(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _add(terms: Sequence[Array], axes: tuple[int, ...] = (-1,)) -> list[Array]:
    inits = (np.zeros((), terms[0].dtype),) * len(terms)
    return list(jax.lax.reduce(tuple(terms), inits, _added, tuple(a % terms[0].ndim for a in axes)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sums_at_once(axes: tuple[int, ...], terms: Sequence[Array]) -> list[Array]:
    """[jnp.sum(t, axes) for t in terms], by one reduction, or two of which one is small.

    XLA's GPU backend may give each of several sums a kernel of its own, and each reads again what
    its term is formed of.
    """
    if axes == (-1,):
        zeros = [np.zeros((), t.dtype) for t in terms]
        return reduce_rows(terms, zeros, _added)
    return _add(terms, axes)


def reduce_rows(
    terms: Sequence[Float[Array, "*S F"]],
    start: Sequence[Any],
    unite: Callable[[Sequence[Array], Sequence[Array]], tuple[Array, ...]],
) -> list[Float[Array, "*S"]]:
    """Each row of all terms together, reduced by the associative and commutative `unite`."""
    width = terms[0].shape[-1]
    part = next((n for n in range(LEAST_PART, width // 2 + 1) if width % n == 0), None)
    if part is not None:
        parts = [t.reshape(*t.shape[:-1], width // part, part) for t in terms]
        terms = jax.lax.reduce(tuple(parts), tuple(start), unite, (parts[0].ndim - 1,))
    return list(jax.lax.reduce(tuple(terms), tuple(start), unite, (terms[0].ndim - 1,)))


@sums_at_once.defjvp
def _at_once_jvp(
    axes: tuple[int, ...],
    primals: tuple[Sequence[Array]],
    tangents: tuple[Sequence[Array]],
) -> tuple[list[Array], list[Array]]:
    (terms,), (changes,) = primals, tangents
    return sums_at_once(axes, terms), [jnp.sum(t, axes) for t in changes]


def all_sums(terms: Sequence[Array]) -> list[Float[Array, ""]]:
    """The sums of all elements of each array, by one reduction."""
    return sums_at_once(tuple(range(terms[0].ndim)), terms)


def column_sums(terms: Sequence[Float[Array, "*S F"]]) -> list[Float[Array, " F"]]:
    """The sum of each term over all axes but the last, in few passes of XLA's CPU backend.

    A few rows are added at once, with the terms fused into that. LLVM unrolls this and vectorises
    along the row if it is little code: so the more terms, the fewer rows, and not all in one pass.
    """
    rows = 4 if len(terms) < TERMS else 2
    parts = [terms[i : i + TERMS] for i in range(0, len(terms), TERMS)]
    return [total for part in parts for total in _added_rows(part, rows)]


def _added_rows(terms: Sequence[Float[Array, "*S F"]], rows: int) -> list[Float[Array, " F"]]:
    *leading, width = terms[0].shape
    count = math.prod(leading)
    terms = [t.reshape(count, width) for t in terms]
    runs, rest = divmod(count, rows)
    whole = runs * rows
    added = sums_at_once((1,), [t[:whole].reshape(runs, rows, width) for t in terms])
    sums = [jnp.sum(a, axis=0) for a in added]
    if rest:
        sums = [s + jnp.sum(t[whole:], axis=0) for s, t in zip(sums, terms, strict=True)]
    return sums


def cotangent_terms(z: Array, dy: Array, order: int) -> list[Array]:
    """dy, dy z, ... dy z^order: what gradients of coefficients are summed from.

    Formed from the left, so that a dy of 0 meets no infinity.
    """
    found = [dy]
    for _ in range(order):
        found.append(found[-1] * z)
    return found


def sums_in_parts(
    terms: Callable[[Float[Array, "*S P"]], Sequence[Float[Array, "*S P"]]], x: Float[Array, "*S F"]
) -> list[Float[Array, "*S 1"]]:
    """row_sums(terms(x)) for XLA's TPU backend: of `PARTS` parts of whole registers, added.

    In parts it is faster (experiments/results/speed/README.md, "Row sums on TPUs"). `terms` is
    element-wise, so that x is cut and not the terms, which XLA might then write to memory.
    """
    width = x.shape[-1]
    part = -(-width // (PARTS * LANES)) * LANES
    parts = [terms(x[..., i : i + part]) for i in range(0, width, part)]
    sums = [[jnp.sum(t, axis=-1, keepdims=True) for t in own] for own in parts]
    return [functools.reduce(operator.add, of_parts) for of_parts in zip(*sums, strict=True)]


@row_sums.defjvp
def _jvp(
    primals: tuple[Sequence[Array]], tangents: tuple[Sequence[Array]]
) -> tuple[list[Array], list[Array]]:
    # Plain sums, which JAX can transpose directly, unlike a reduction with several operands.
    (terms,), (changes,) = primals, tangents
    return row_sums(terms), [jnp.sum(t, axis=-1, keepdims=True) for t in changes]
