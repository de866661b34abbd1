"""Causal attention by cuDNN's fused kernels, as `jax.nn.dot_product_attention` offers them."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.implementations import backend
from polycom_jax.kernels.restrictions import reverse_only

MULTIPLE = 128
"""Lengths must be a multiple of this: at others the backward kernels have known defects (NaN at
length % 128 == 64 with a mask, pytorch issue 196678; at length 1, cudnn-frontend issue 1072)."""

OLDEST = 8.0
"""Compute capability from which cuDNN's fused attention runs: Ampere (JAX's own check)."""

WIDEST_HEAD = 128
"""Heads up to this width run on every GPU that has the kernels; wider ones need Hopper."""


def attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T H C"]:
    """See `api.attention`. With `segment_ids` it reads a mask of T x T a sequence from memory."""
    q, k, v = (checkpoint_as("attention", x) for x in reverse_only("attention", "cudnn", q, k, v))
    mask = None
    if segment_ids is not None:
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def unsupported_reason(q: Float[Array, "B T H C"]) -> str | None:
    """A reason against, or None."""
    length, width = q.shape[1], q.shape[3]
    if backend() != "gpu":
        return "it needs a CUDA GPU"
    if jax.default_backend() == "gpu":
        capability = str(getattr(jax.devices()[0], "compute_capability", ""))
        if not capability[:1].isdigit() or float(capability) < OLDEST:
            return f"it needs a GPU of capability {OLDEST}, not {capability or 'another make'}"
    elif not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return "JAX's CUDA plugin, which lowers it, is not installed"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, not {q.dtype}"
    if length % MULTIPLE:
        return f"sequence length {length} is no multiple of {MULTIPLE}"
    if width % 8 or width > WIDEST_HEAD:
        return f"head width {width} is no multiple of 8 up to {WIDEST_HEAD}"
    return None
