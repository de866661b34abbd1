"""Sums over rows of several arrays, in forms that XLA's CPU and TPU backends run in one pass."""

import functools
import operator
from collections.abc import Callable, Sequence

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
    added = _add([t[..., :whole].reshape(*t.shape[:-1], runs, RUN, lanes) for t in terms], axes=(-2,))
    sums = row_sums([t.reshape(*t.shape[:-2], runs * lanes) for t in added])
    if whole < width:
        rest = row_sums([t[..., whole:] for t in terms])
        sums = [s + r for s, r in zip(sums, rest, strict=True)]
    return sums


def _add(terms: Sequence[Array], axes: tuple[int, ...] = (-1,)) -> list[Array]:
    zero = np.zeros((), terms[0].dtype)

    def add(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    inits = (zero,) * len(terms)
    return list(jax.lax.reduce(tuple(terms), inits, add, tuple(a % terms[0].ndim for a in axes)))


@jax.custom_jvp
def all_sums(terms: Sequence[Float[Array, "*S"]]) -> list[Float[Array, ""]]:
    """[jnp.sum(t) for t in terms], by one reduction.

    XLA's GPU backend gives each of several sums a kernel of its own, which reads what the term is
    formed of again, wherever something else keeps the terms apart.
    """
    return _add(terms, axes=tuple(range(terms[0].ndim)))


@all_sums.defjvp
def _all_sums_jvp(
    primals: tuple[Sequence[Array]], tangents: tuple[Sequence[Array]]
) -> tuple[list[Array], list[Array]]:
    (terms,), (changes,) = primals, tangents
    return all_sums(terms), [jnp.sum(t) for t in changes]


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
