"""Causal attention as the models call it."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax._errors import require
from polycom_jax._fields import check_value
from polycom_jax.kernels.attention import blocks, cudnn, splash, xla
from polycom_jax.kernels.attention.per_shard import per_shard
from polycom_jax.kernels.implementations import AttentionImplementation, Kernel, Operation
from polycom_jax.sharding import Rules

ATTENTION = Operation(
    "attention",
    {
        "xla": Kernel(xla.attention),
        "blocks": per_shard(blocks.attention),
        "splash": per_shard(splash.attention, splash.unsupported_reason),
        "cudnn": per_shard(cudnn.attention, cudnn.unsupported_reason),
    },
)


def attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    *,
    start: Int[Array, " B"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    window: int | None = None,
    rules: Rules | None = None,
    implementation: AttentionImplementation | None = None,
) -> Float[Array, "B T H C"]:
    """softmax(q k^T / sqrt(C)) v over the keys that a query sees: its own and earlier ones.

    Args:
        q: queries; query head h goes with kv head h // (H / K).
        k: keys, as many as queries; more only with `start`.
        v: values.
        start: with a cache: sequence b's queries stand behind its first start[b] keys.
        segment_ids: document of each token; a query sees keys of its own alone. Not with `start`.
        window: keys that a query sees at most: its own and the window - 1 before it. None: all.
        rules: how the arrays are split over the mesh of `jax.set_mesh`; None: not stated.
        implementation: None for the backend's best, or
            "xla": plain operations; T x S scores a head; every kind of differentiation;
            "blocks": for CPUs, scores of a few heads at a time, saves q, k, v, the result and one
            number a query and head; every kind of differentiation;
            "splash": TPU kernels, T a multiple of 128; first derivatives in reverse mode only;
            "cudnn": GPU kernels, bfloat16 or float16, T a multiple of 128; likewise.

    Returns:
        The shape and dtype of `q`; scores and softmax are float32.

    Raises:
        InputError: shapes that do not go together, heads that do not divide, more keys than
            queries without a cache, both `start` and `segment_ids`, a window without a key, or an
            implementation that is unknown or cannot run here.
    """
    _check_shapes(q, k, v, start, segment_ids)
    heads, kv_heads = q.shape[2], k.shape[2]
    require(
        kv_heads > 0 and heads % kv_heads == 0,
        f"{heads} query heads are no multiple of {kv_heads} key and value heads.",
    )
    require(
        start is not None or q.shape[1] == k.shape[1],
        f"{q.shape[1]} queries and {k.shape[1]} keys: without `start` there must be as many.",
    )
    require(
        start is None or segment_ids is None,
        "segment_ids with a cache: decode one document a row instead.",
    )
    check_value("window", window, int | None)
    require(window is None or window >= 1, f"window={window} must be at least 1, or None.")
    if window is not None and window >= k.shape[1]:
        window = None  # it hides nothing
    masks: Any = {"start": start, "segment_ids": segment_ids, "window": window}
    return ATTENTION(q, k, v, **masks, rules=rules, implementation=implementation)


def _check_shapes(q: Array, k: Array, v: Array, start: Any, segment_ids: Any) -> None:
    """Raises `InputError` for what plain operations would repeat until it fits."""
    require(
        q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::3] == k.shape[::3],
        "attention: expected q [B, T, H, C], and k and v [B, S, K, C], came"
        f" {q.shape}, {k.shape} and {v.shape}.",
    )
    for name, given, axes in (("start", start, 1), ("segment_ids", segment_ids, 2)):
        wanted = q.shape[:axes]
        found = wanted if given is None else jnp.shape(given)
        require(found == wanted, f"{name} of shape {found} must be {wanted}, as q is {q.shape}.")
