"""Attention as plain array operations: every backend, any mask, all of JAX's transformations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.sharding import Rules


def attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    *,
    start: Int[Array, " B"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    window: int | None = None,
    rules: Rules | None = None,
) -> Float[Array, "B T H C"]:
    """Causal attention, behind `start` cached keys; see `api.attention`."""
    del rules  # GSPMD splits it
    q, k, v = (checkpoint_as("attention", x) for x in (q, k, v))
    mask = causal_mask(q.shape[1], k.shape[1], start, segment_ids, window)
    return masked_attention(q, k, v, mask)


def causal_mask(
    queries: int,
    keys: int,
    start: Int[Array, " B"] | None,
    segment_ids: Int[Array, "B T"] | None,
    window: int | None = None,
) -> Bool[Array, "B T S"]:
    """Which keys each query sees; the first axis is 1 where all sequences have the same."""
    places = jnp.arange(queries, dtype=jnp.int32)[None, :]
    if start is not None:
        places = start[:, None] + places
    mask = jnp.arange(keys, dtype=jnp.int32)[None, None, :] <= places[:, :, None]
    if window is not None:
        key = jnp.arange(keys, dtype=jnp.int32)[None, None, :]
        mask = mask & in_window(places[:, :, None], key, window)
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return mask


def in_window(query: Int[Array, "..."], key: Int[Array, "..."], window: int) -> Bool[Array, "..."]:
    """Whether the key at a place is one of the last `window` up to the query's own place."""
    return query - key < window


def masked_attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T H C"]:
    """softmax(q k^T / sqrt(C)) v where `mask`; each kv head serves H/K neighbouring query heads.

    Scores and softmax are float32. A query whose mask is empty gets the mean of v, not NaN.
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    # Heads first: XLA's CPU backend is slow at batched products with the heads third.
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bkgtc,bksc->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = scores * (width**-0.5)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bksc->bkgtc", weights, v)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)
