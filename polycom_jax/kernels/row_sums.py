"""Sums over rows of several arrays in one pass, for XLA's CPU backend."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PARTS = 8
"""Parts a row is cut into, which are added to each other lane by lane: LLVM unrolls that many and
vectorises over lanes; from 32 on it does not, and the sum is one scalar addition after another."""

NARROW = 64
"""Rows up to this wide are summed at once: there is too little to vectorise."""

SHORT = 512
"""Sums of lanes longer than this are cut again: a float32 sum of n positive terms, one after the
other, is off by about sqrt(n) 3e-8."""


@jax.custom_jvp
def row_sums(terms: Sequence[Float[Array, "*S F"]]) -> list[Float[Array, "*S 1"]]:
    """[sum(t, axis=-1, keepdims=True) for t in terms], the terms formed and read once.

    A sum of one array would be handed to a library that takes it as stored, so XLA would write each
    term to memory first (jax 0.12: z^2, z^4, z^6, dy z ... one after the other). A reduction with
    several operands is left to XLA's own loops, into which the terms are fused.
    """
    width = terms[0].shape[-1]
    if width <= NARROW:
        return [s[..., None] for s in _add(terms)]
    whole = width // PARTS * PARTS
    lanes = _add(
        [t[..., :whole].reshape(*t.shape[:-1], PARTS, whole // PARTS) for t in terms], axis=-2
    )
    sums = row_sums(lanes) if lanes[0].shape[-1] > SHORT else [s[..., None] for s in _add(lanes)]
    if whole < width:
        rest = _add([t[..., whole:] for t in terms])
        sums = [s + r[..., None] for s, r in zip(sums, rest, strict=True)]
    return sums


def _add(terms: Sequence[Array], axis: int = -1) -> list[Array]:
    zero = np.zeros((), terms[0].dtype)

    def add(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    inits = (zero,) * len(terms)
    return list(jax.lax.reduce(tuple(terms), inits, add, (axis % terms[0].ndim,)))


@row_sums.defjvp
def _jvp(
    primals: tuple[Sequence[Array]], tangents: tuple[Sequence[Array]]
) -> tuple[list[Array], list[Array]]:
    # Plain sums, which JAX can transpose: derivatives of a reduction with several operands go the
    # long way round.
    (terms,), (changes,) = primals, tangents
    return row_sums(terms), [jnp.sum(t, axis=-1, keepdims=True) for t in changes]
