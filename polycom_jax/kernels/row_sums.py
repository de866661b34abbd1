"""Sums over rows of several arrays in one pass, as XLA's CPU and TPU backends need them told."""

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
"""Of a TPU's registers."""

RUN = 16
"""Runs of this many lanes are added to each other on a CPU, this many at once: LLVM unrolls that
many and vectorises over lanes. Of 32 runs it does not, and the sum is one scalar addition after
another. 16 float32 are a cache line, so memory is read in order."""

NARROW = 64
"""Rows up to this wide are summed at once: there is too little to vectorise."""


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
    lanes = min(RUN, width // RUN)
    runs = width // (RUN * lanes)
    whole = runs * RUN * lanes
    added = _add([t[..., :whole].reshape(*t.shape[:-1], runs, RUN, lanes) for t in terms], axis=-2)
    sums = row_sums([t.reshape(*t.shape[:-2], runs * lanes) for t in added])
    if whole < width:
        rest = row_sums([t[..., whole:] for t in terms])
        sums = [s + r for s, r in zip(sums, rest, strict=True)]
    return sums


def _add(terms: Sequence[Array], axis: int = -1) -> list[Array]:
    zero = np.zeros((), terms[0].dtype)

    def add(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    inits = (zero,) * len(terms)
    return list(jax.lax.reduce(tuple(terms), inits, add, (axis % terms[0].ndim,)))


def sums_in_parts(
    terms: Callable[[Float[Array, "*S P"]], Sequence[Float[Array, "*S P"]]],
    x: Float[Array, "*S F"],
) -> list[Float[Array, "*S 1"]]:
    """row_sums(terms(x)) for XLA's TPU backend: of `PARTS` parts of whole registers' lanes, added.

    In one piece it takes 0.427, 0.284 and 0.841 ms for x^2, x^4 and x^6 of bfloat16 rows of 8,256,
    5,504 and 16,384 (16,384 rows on v5p; a plain sum of x takes as long), in these parts 0.184,
    0.128 and 0.336; v5e, v4 and v6e gain as much (libtpu 0.0.50.1, its own estimate). Half as many
    parts, or twice as many, gain less. `terms` is of elements, so that parts of x can be cut before
    it: XLA may write the terms to memory where they are cut.
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
    # Plain sums, which JAX can transpose: derivatives of a reduction with several operands go the
    # long way round.
    (terms,), (changes,) = primals, tangents
    return row_sums(terms), [jnp.sum(t, axis=-1, keepdims=True) for t in changes]
