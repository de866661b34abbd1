"""How large attention's logits get: they grow where training becomes unstable."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from polycom_jax.kernels.attention.xla import causal_mask


def largest_logits(
    queries: Float[Array, "B T H C"],
    keys: Float[Array, "B T K C"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    mask: Bool[Array, "B T"] | None = None,
    window: int | None = None,
) -> Float[np.ndarray, " H"]:
    """max over b, i and j <= i of q_bi . k_bj / sqrt(C), a head each: before the softmax.

    Its growth in training, in the first layer, foretells divergence (Wortsman et al. 2023, arXiv
    2309.14322, section 3.1).

    Args:
        queries: as attention takes them, such as `LayerView.queries`.
        keys: the same; each kv head serves H / K neighbouring query heads.
        segment_ids: pairs of different segments are not seen. None: one segment.
        mask: queries that count. None: all.
        window: only pairs with i - j below it are seen. None: all.

    Returns:
        float64 [H]; products are summed in float32. -inf where no query counts.
    """
    shape = queries.shape[:2]
    segments = jnp.zeros(shape, jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
    counted = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    return np.asarray(_largest(queries, keys, segments, counted, window), np.float64)


@partial(jax.jit, static_argnums=4)
def _largest(
    queries: Array, keys: Array, segment_ids: Array, mask: Array, window: int | None
) -> Float[Array, " H"]:
    _, length, heads, width = queries.shape
    seen = causal_mask(length, length, None, None, window)
    seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :]) & mask[:, :, None]
    served = heads // keys.shape[2]

    def of_head(head: Array) -> Array:  # one at a time: all heads' [T, T] would not fit
        q, k = queries[:, :, head], keys[:, :, head // served]
        logits = jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32)
        return jnp.max(jnp.where(seen, logits / math.sqrt(width), -jnp.inf))

    return jax.lax.map(of_head, jnp.arange(heads))
