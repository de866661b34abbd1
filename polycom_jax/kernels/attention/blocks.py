"""Causal attention for CPUs: tiles that stay in cache, products that XLA's CPU backend runs well.

Three things make it fast there. Queries (in the backward pass: keys) go in blocks, each against
the keys (queries) that it may see and few others: half of the pairs are never computed, and with a
window most of those that it hides. A few heads are taken at a time, so that a block's scores stay
in a core's L2 cache. And the backward pass works on transposed scores, p^T = softmax(q k^T)^T, so
that one of dq = dS k, dk = dS^T q, dv = p^T dO contracts the first axis of its left operand, which
is slow, and not two. Figures stand in experiments/results/speed/README.md, "Attention on CPUs".

The backward pass keeps q, k, v, the output and one number a query, the logarithm of the softmax's
denominator (Dao et al., FlashAttention, arXiv 2205.14135, section 3.1 and appendix B.4).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.attention.xla import in_window
from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.linear import linear_map

TILE_BYTES = 2**20
"""Scores of one tile in float32: the backward pass has two such arrays at hand, which the L2 caches
of two of a server's cores hold."""

BLOCKS = 4
"""At most so many blocks a sequence: with n of them (n + 1) / 2n of all pairs are computed, but
each is compiled by itself."""

SMALLEST_BLOCK = 64
"""Queries (keys) of a block: fewer of them make products that do not fill a core."""


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    segment_ids: Int[Array, "B T"] | None,
    window: int | None,
) -> Float[Array, "B T H C"]:
    """See `api.attention`."""
    return _forward(window, q, k, v, segment_ids)[0]


@attention.defjvp
def _rule(window: int | None, primals: Any, tangents: Any) -> tuple[Array, Array]:
    *qkv, segment_ids = primals
    q, k, v = (checkpoint_as("attention", x) for x in qkv)
    out, log_sum = (checkpoint_as("attention", x) for x in _forward(window, q, k, v, segment_ids))
    fixed = (q, k, v, out, log_sum, *jax.tree.leaves(segment_ids))
    forward, backward = partial(_along, window), partial(_backward, window)
    return out, linear_map(forward, backward, fixed, tangents[:3])


def _along(window: int | None, fixed: Sequence[Array], tangents: Sequence[Array]) -> Array:
    """The change of the output: the derivative of the forward pass by tiles, as JAX forms it."""
    q, k, v, _, _, *ids = fixed

    def at(*qkv: Array) -> Array:
        return _forward(window, *qkv, *(ids or [None]))[0]

    return jax.jvp(at, (q, k, v), tuple(tangents))[1]


def _backward(window: int | None, fixed: Sequence[Array], d_out: Array) -> Sequence[Array]:
    q, k, v, out, log_sum, *ids = fixed
    arrays = (q, k, v, out, log_sum, d_out)
    return _by_tile(_backward_tile, window, k.shape[2], arrays, *(ids or [None]))


def _forward(
    window: int | None, q: Array, k: Array, v: Array, segment_ids: Array | None
) -> tuple[Float[Array, "B T H C"], Float[Array, "B T H"]]:
    """The output, and the logarithm of each row's sum of exponentials."""
    return _by_tile(_forward_tile, window, k.shape[2], (q, k, v), segment_ids)


def _by_tile(
    f: Callable[..., Any],
    window: int | None,
    kv_heads: int,
    arrays: tuple[Array, ...],
    segment_ids: Array | None,
) -> Any:
    """`f` of [b, T, k, heads / k, ...] tiles of [B, T, heads, ...] arrays, one at a time."""
    batch, length = arrays[0].shape[:2]
    groups = arrays[0].shape[2] // kv_heads
    block = min(length, _block(length))
    longest = length if window is None else min(length, block + window - 1)
    scores = 4 * groups * longest * block
    heads = _divisor(kv_heads, TILE_BYTES // scores)
    rows = _divisor(batch, TILE_BYTES // (scores * heads)) if heads == kv_heads else 1
    tiles = (batch // rows, kv_heads // heads)

    def split(x: Array) -> Array:
        x = x.reshape(tiles[0], rows, length, tiles[1], heads, x.shape[2] // kv_heads, *x.shape[3:])
        return jnp.moveaxis(x, 3, 1).reshape(-1, rows, length, heads, *x.shape[5:])

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x.reshape(*tiles, *x.shape[1:]), 1, 3)
        return x.reshape(batch, length, -1, *x.shape[6:])

    if segment_ids is not None:
        segment_ids = jnp.repeat(segment_ids.reshape(tiles[0], rows, length), tiles[1], axis=0)

    def one(tile: Any) -> Any:
        *own, ids = tile
        # Without the barrier XLA fuses the loop's slice of them into what reads them, and slices
        # again for every score.
        return f(window, *own, jax.lax.optimization_barrier(ids))

    return jax.tree.map(join, jax.lax.map(one, (*map(split, arrays), segment_ids)))


def _forward_tile(
    window: int | None,
    q: Float[Array, "b T k G C"],
    k: Float[Array, "b T k 1 C"],
    v: Float[Array, "b T k 1 C"],
    segment_ids: Int[Array, "b T"] | None,
) -> tuple[Array, Array]:
    shape, dtype = q.shape, q.dtype
    q, k, v = _scaled(_heads_first(q)), _heads_first(k)[:, 0], _heads_first(v)[:, 0]
    outs, log_sums = [], []
    for begin, end in _blocks(shape[1]):
        rows, first = q[:, :, begin:end], _first_key(begin, window)
        scores = jnp.einsum("nrc,nsc->nrs", _merged(rows), k[:, first:end])
        seen = _visible(segment_ids, shape, window, slice(begin, end), slice(first, end))
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        # Neither result depends on it, so neither does a derivative.
        top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum("nrs,nsc->nrc", weights, v[:, first:end]) / total
        outs.append(out.reshape(rows.shape))
        log_sums.append((top + jnp.log(total)).reshape(rows.shape[:3]))
    out = _heads_last(jnp.concatenate(outs, axis=2), shape)
    return out.astype(dtype), _heads_last(jnp.concatenate(log_sums, axis=2), shape[:-1])


def _backward_tile(
    window: int | None,
    q: Float[Array, "b T k G C"],
    k: Float[Array, "b T k 1 C"],
    v: Float[Array, "b T k 1 C"],
    out: Float[Array, "b T k G C"],
    log_sum: Float[Array, "b T k G"],
    d_out: Float[Array, "b T k G C"],
    segment_ids: Int[Array, "b T"] | None,
) -> tuple[Array, Array, Array]:
    shape, dtypes = q.shape, (q.dtype, k.dtype, v.dtype)
    q, out, log_sum, d_out = map(_heads_first, (q, out, log_sum, d_out))
    q, kv_shape = _scaled(q), k.shape
    k, v = _heads_first(k)[:, 0], _heads_first(v)[:, 0]
    mean = jnp.sum(out * d_out, axis=-1)
    dq, dk, dv = jnp.zeros_like(q), [], []
    for begin, end in _blocks(shape[1]):
        own_k, own_v = k[:, begin:end], v[:, begin:end]
        seers = slice(begin, _last_query(end, shape[1], window))
        rows = q[:, :, seers]
        own_q, own_d = _merged(rows), _merged(d_out[:, :, seers])
        scores = jnp.einsum("nsc,nrc->nsr", own_k, own_q)
        seen = _visible(segment_ids, shape, window, seers, slice(begin, end))
        scores = jnp.where(jnp.swapaxes(seen, 1, 2), scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - _merged(log_sum[:, :, seers])[:, None])
        d_weights = jnp.einsum("nsc,nrc->nsr", own_v, own_d)
        d_scores = weights * (d_weights - _merged(mean[:, :, seers])[:, None])
        dv.append(jnp.einsum("nsr,nrc->nsc", weights, own_d))
        dk.append(jnp.einsum("nsr,nrc->nsc", d_scores, own_q))
        d_rows = jnp.einsum("nsr,nsc->nrc", d_scores, own_k).reshape(rows.shape)
        dq = dq.at[:, :, seers].add(d_rows)
    dk, dv = (jnp.concatenate(parts, axis=1)[:, None] for parts in (dk, dv))
    grads = (_heads_last(_scaled(dq), shape), *(_heads_last(d, kv_shape) for d in (dk, dv)))
    dq, dk, dv = (d.astype(dtype) for d, dtype in zip(grads, dtypes, strict=True))
    return dq, dk, dv


def _visible(
    segment_ids: Array | None,
    shape: tuple[int, ...],
    window: int | None,
    queries: slice,
    keys: slice,
) -> Array:
    """May the query see the key: bool [1 or b x k, G x queries, keys]."""
    _, length, heads, groups = shape[:4]
    index = jnp.arange(length, dtype=jnp.int32)
    query, key = index[queries][None, :, None], index[keys][None, None, :]
    seen = query >= key
    if window is not None:
        seen &= in_window(query, key, window)
    if segment_ids is not None:
        seen &= segment_ids[:, queries, None] == segment_ids[:, None, keys]
        seen = jnp.repeat(seen, heads, axis=0)
    return jnp.tile(seen, (1, groups, 1))


def _heads_first(x: Float[Array, "b T k G *C"]) -> Float[Array, "b*k G T *C"]:
    # A float32 product of bfloat16 values is what XLA's CPU backend would make anyway.
    x = jnp.moveaxis(x.astype(jnp.float32), 1, 3)
    return x.reshape(-1, *x.shape[2:])


def _heads_last(x: Float[Array, "b*k G T *C"], shape: tuple[int, ...]) -> Array:
    """The inverse of `_heads_first`, for a result of that shape."""
    rows, length, heads, groups = shape[:4]
    x = x.reshape(rows, heads, groups, length, *shape[4:])
    return jnp.moveaxis(x, 3, 1)


def _merged(x: Float[Array, "n G R *C"]) -> Float[Array, "n G*R *C"]:
    # The query heads that share a key head are more rows of the same product.
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _scaled(x: Array) -> Array:
    return x * x.shape[-1] ** -0.5


def _block(length: int) -> int:
    return max(SMALLEST_BLOCK, -(-length // BLOCKS))


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each block."""
    step = _block(length)
    for begin in range(0, length, step):
        yield begin, min(begin + step, length)


def _first_key(begin: int, window: int | None) -> int:
    """The first key that queries from `begin` on see."""
    return 0 if window is None else max(0, begin - window + 1)


def _last_query(end: int, length: int, window: int | None) -> int:
    """Behind the last query that sees one of the keys before `end`."""
    return length if window is None else min(length, end - 1 + window)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`, or 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))
