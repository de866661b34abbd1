"""Attention over keys and values that earlier calls have cached."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.attention.api import attention
from polycom_jax.kernels.implementations import AttentionImplementation
from polycom_jax.sharding import Rules, constrain

CACHE_AXES = ("layers", "batch", "kv_heads", "seq", "head_dim")
"""Logical axes of cached keys and values: heads first, as attention's products read them."""


def attention_with_cache(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    cache: Any,
    *,
    segment_ids: Int[Array, "B T"] | None,
    window: int | None,
    rules: Rules | None,
    implementation: AttentionImplementation | None,
) -> tuple[Float[Array, "B T H C"], Any]:
    """Causal attention over `k`, `v` and what the cache holds before them; and the extended cache.

    The cache is that of all layers (`k` and `v`, axes as in `CACHE_AXES`), with the index of the
    `layer` and the `length` of each sequence. It is always read by "xla". None: there is none.
    """
    start = None
    if cache is not None:
        start, implementation = cache["length"], "xla"
        k, v, cache = _extend(cache, k, v, rules)
    masks: Any = {"start": start, "segment_ids": segment_ids, "window": window}
    return attention(q, k, v, **masks, rules=rules, implementation=implementation), cache


def _extend(
    cache: Any, k: Float[Array, "B T K C"], v: Float[Array, "B T K C"], rules: Rules | None
) -> tuple[Float[Array, "B S K C"], Float[Array, "B S K C"], Any]:
    """This layer's cached keys and values with the new ones, and the cache of all layers."""
    layer, extended = cache["layer"], {}
    for name, new in (("k", k), ("v", v)):
        appended = _append(cache[name], new, layer, cache["length"])
        extended[name] = constrain(appended, rules, *CACHE_AXES)
    own = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in extended.values())
    k, v = (jnp.swapaxes(x, 1, 2) for x in own)
    return k, v, extended


def _append(
    cached: Float[Array, "L B K S C"],
    new: Float[Array, "B T K C"],
    layer: Int[Array, ""],
    start: Int[Array, " B"],
) -> Float[Array, "L B K S C"]:
    """Writes the T new entries of sequence b behind its first start[b]; without room it does not.

    XLA does a scatter of whole windows in place; `jax.vmap` of a dynamic update would copy the
    cache, and overwrite earlier entries where there is no room.
    """
    return jax.lax.scatter(
        cached,
        jnp.stack([jnp.broadcast_to(layer, start.shape), start], axis=1),
        jnp.swapaxes(new, 1, 2).astype(cached.dtype),
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3),
            inserted_window_dims=(0,),
            scatter_dims_to_operand_dims=(0, 3),
            operand_batching_dims=(1,),
            scatter_indices_batching_dims=(0,),
        ),
        unique_indices=True,
        mode="drop",
    )
