"""What attention does: how large its logits get, and how much of it goes to a token nearby."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from polycom_jax._errors import require
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
    segments, counted = _defaults(queries, segment_ids, mask)
    return np.asarray(_largest(queries, keys, segments, counted, window), np.float64)


def share_before(
    queries: Float[Array, "B T H C"],
    keys: Float[Array, "B T K C"],
    offset: int,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    mask: Bool[Array, "B T"] | None = None,
    window: int | None = None,
) -> Float[np.ndarray, " H"]:
    """Mean over queries i of the attention that key i - offset gets, a head each: from 0 to 1.

    Near 1 at offset 1 it is a previous-token head. In a sequence that repeats itself every P
    tokens, near 1 at offset P - 1 it is an induction head: it looks at what came after the same
    token before (Olsson et al. 2022, arXiv 2209.11895).

    Args:
        queries: as for `largest_logits`.
        keys: as there.
        offset: how far back; 0: the token itself.
        segment_ids: as there.
        mask: as there. Queries whose key i - offset is not seen do not count either.
        window: as there.

    Returns:
        float64 [H]; the softmax is in float32. NaN where no query counts.

    Raises:
        InputError: a negative offset.
    """
    require(offset >= 0, f"offset={offset} must be 0 or more: attention looks back.")
    segments, counted = _defaults(queries, segment_ids, mask)
    means = _share(queries, keys, segments, counted, window, offset)
    return np.asarray(means, np.float64)


def _defaults(queries: Array, segment_ids: Any, mask: Any) -> tuple[Array, Array]:
    """One segment, and all queries, where none are named."""
    shape = queries.shape[:2]
    segments = jnp.zeros(shape, jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
    return segments, jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)


@partial(jax.jit, static_argnums=4)
def _largest(
    queries: Array, keys: Array, segment_ids: Array, mask: Array, window: int | None
) -> Float[Array, " H"]:
    counted = _seen(segment_ids, window) & mask[:, :, None]

    def of_head(logits: Array) -> Array:
        return jnp.max(jnp.where(counted, logits, -jnp.inf))

    return _each_head(of_head, queries, keys)


@partial(jax.jit, static_argnums=(4, 5))
def _share(
    queries: Array,
    keys: Array,
    segment_ids: Array,
    mask: Array,
    window: int | None,
    offset: int,
) -> Float[Array, " H"]:
    seen = _seen(segment_ids, window)
    counted = jnp.diagonal(seen, -offset, 1, 2) & mask[:, offset:]
    total = jnp.sum(counted, dtype=jnp.float32)

    def of_head(logits: Array) -> Array:
        p = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
        return jnp.sum(jnp.where(counted, jnp.diagonal(p, -offset, 1, 2), 0)) / total

    return _each_head(of_head, queries, keys)


def _seen(segment_ids: Array, window: int | None) -> Bool[Array, "B T T"]:
    length = segment_ids.shape[1]
    return causal_mask(length, length, None, segment_ids, window)


def _each_head(
    of_head: Callable[[Float[Array, "B T T"]], Array], queries: Array, keys: Array
) -> Float[Array, " H"]:
    """`of_head` of each head's logits; one at a time, as all heads' would not fit."""
    _, _, heads, width = queries.shape
    served = heads // keys.shape[2]

    def one(head: Array) -> Array:
        q, k = queries[:, :, head], keys[:, :, head // served]
        logits = jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32)
        return of_head(logits / math.sqrt(width))

    return jax.lax.map(one, jnp.arange(heads))
