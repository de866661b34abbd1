"""Causal attention by cuDNN's fused kernels, as `jax.nn.dot_product_attention` offers them."""

from ctypes.util import find_library
from importlib.util import find_spec

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.attention.xla import in_window
from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.implementations import backend, compute_capability, is_ahead
from polycom_jax.kernels.restrictions import reverse_only

MULTIPLE = 128
"""Lengths must be a multiple of this: at others the backward kernels have known defects (NaN at
length % 128 == 64 with a mask, pytorch issue 196678; at length 1, cudnn-frontend issue 1072)."""

OLDEST = 8.0
"""Compute capability from which cuDNN's fused attention runs: Ampere (JAX's own check)."""

WIDEST_HEAD = 128
"""Heads up to this width run on every GPU that has the kernels."""

WIDE_HEADS_FROM, WIDEST_OF_ALL = 9.0, 256
"""From Hopper on, wider heads run, too; JAX lowers them only for a GPU that is here."""


def attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    segment_ids: Int[Array, "B T"] | None,
    window: int | None = None,
) -> Float[Array, "B T H C"]:
    """See `api.attention`. With `segment_ids` it reads a mask of T x T a sequence from memory.

    A window alone is the kernels' own; with `segment_ids` it stands in that mask too, since they
    take no window beside a mask before cuDNN 9.10.2.

    XLA makes the mask once for all layers. cuDNN's other forms are no better: packed documents take
    a bound on their number, and as many softmax statistics a query; a function of the scores cannot
    be joined with the causal mask (experiments/results/speed/gpu.md).
    """
    q, k, v = (checkpoint_as("attention", x) for x in reverse_only("attention", "cudnn", q, k, v))
    mask, own_window = None, None if window is None else (window - 1, 0)
    if segment_ids is not None:
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        if window is not None:
            index = jnp.arange(q.shape[1], dtype=jnp.int32)[None, None, :]
            mask &= in_window(index[..., :, None], index[..., None, :], window)
            own_window = None
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=True,
        local_window_size=own_window,
        implementation="cudnn",
    )


def unsupported_reason(q: Float[Array, "B T H C"]) -> str | None:
    """A reason against, or None."""
    length, width = q.shape[1], q.shape[3]
    if backend() != "gpu":
        return "it needs a CUDA GPU"
    capability = compute_capability()
    if capability is None or capability < OLDEST:
        return f"it needs a GPU of capability {OLDEST}, not {capability or 'another make'}"
    if is_ahead() and (missing := _missing()):
        return f"{missing}, without which JAX does not lower it, is not installed"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, not {q.dtype}"
    if length % MULTIPLE:
        return f"sequence length {length} is no multiple of {MULTIPLE}"
    widest = WIDEST_OF_ALL if capability >= WIDE_HEADS_FROM and not is_ahead() else WIDEST_HEAD
    if width % 8 or width > widest:
        return f"head width {width} is no multiple of 8 up to {widest}"
    return None


def _missing() -> str | None:
    """What is not installed of what JAX asks for its version: its plugin, and cuDNN."""
    if not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return "JAX's CUDA plugin"
    wheel = find_spec("nvidia") is not None and find_spec("nvidia.cudnn") is not None
    return None if wheel or find_library("cudnn") else "cuDNN (nvidia-cudnn-cu13)"
