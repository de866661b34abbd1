"""Causal attention on TPUs by JAX's splash kernels, which skip the blocks that no query sees."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.restrictions import reverse_only
from polycom_jax.kernels.row_sums import LANES

BLOCKS = (512, 256, LANES)
"""Block lengths, best first: of the kernels' own choices 128 is the default, and 512 what MaxText
sets for all of them (`sa_block_q` to `sa_block_kv_dq` in its base.yml)."""


def attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    segment_ids: Int[Array, "B T"] | None = None,
    window: int | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T H C"]:
    """See `api.attention`; `interpret` runs the kernels as plain operations, for tests."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    q, k, v = reverse_only("attention", "splash", q, k, v)
    length, heads, width = q.shape[1:]
    block = next(b for b in BLOCKS if length % b == 0)
    mask, scope = splash.CausalMask((length, length)), contextlib.nullcontext()
    if window is not None:
        mask = splash.LocalMask((length, length), (window - 1, 0), offset=0)
        scope = jax.named_scope(f"window_{_keys_met(window, block)}")
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        residual_checkpoint_name="attention",
    )
    # The kernels do not scale the scores.
    q = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)
    q, k, v = (checkpoint_as("attention", jnp.swapaxes(x, 1, 2)) for x in (q, k, v))
    ids = None
    if segment_ids is not None:
        ids = splash.SegmentIds(q=segment_ids, kv=segment_ids)

    def row(q: Array, k: Array, v: Array, ids: Any) -> Array:
        out = kernel(q, k, v, ids)
        assert isinstance(out, jax.Array)  # residuals come with it only where asked for
        return out

    with scope:
        out = jax.vmap(row)(q, k, v, ids)
    return jnp.swapaxes(out, 1, 2).astype(q.dtype)


def _keys_met(window: int, block: int) -> int:
    """Keys that a block of queries is multiplied with; predictions find it in a kernel's scope."""
    return block * (1 + -(-(window - 1) // block))


def unsupported_reason(q: Float[Array, "B T H C"]) -> str | None:
    """A reason against, or None."""
    length = q.shape[1]
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it takes bfloat16 and float32, not {q.dtype}"
    if length % LANES:
        return f"sequence length {length} is no multiple of {LANES}"
    return None
