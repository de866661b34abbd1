"""Attention to whole sequences on a mesh: every device has its share of the batch and its heads.

Kernels are opaque to GSPMD, and so is a loop over tiles of the batch: inside `jax.shard_map` they
see what one device holds. No device needs anything of another.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from polycom_jax.kernels.implementations import Kernel
from polycom_jax.kernels.sharded import on_one_device
from polycom_jax.sharding import Rules, num_parts

_QUERIES = ("batch", "seq", "heads", "head_dim")
_KEYS = ("batch", "seq", "kv_heads", "head_dim")


def per_shard(
    f: Callable[[Array, Array, Array, Array | None, int | None], Array],
    unsupported_reason: Callable[[Array], str | None] = lambda _q: None,
) -> Kernel:
    """A version of `api.attention` from one for the sequences and heads that a device holds.

    Args:
        f: f(q, k, v, segment_ids, window), with as many keys as queries.
        unsupported_reason: why it cannot take these queries, in words, or None if it can.
    """

    def run(
        q: Array,
        k: Array,
        v: Array,
        *,
        segment_ids: Any,
        window: int | None,
        rules: Any,
        **_start: Any,
    ) -> Array:
        def own(q: Array, k: Array, v: Array, segment_ids: Array | None) -> Array:
            return f(q, k, v, segment_ids, window)

        return _on_mesh(own, rules, q, k, v, segment_ids)

    def reason(
        q: Array, k: Array, _v: Array, *, start: Any, rules: Any, **_masks: Any
    ) -> str | None:
        if start is not None or q.shape[1] != k.shape[1]:
            return "it takes whole sequences, no cache"
        if q.size == 0:
            return "there are no queries"
        return unsupported_reason(q) or _why_not_split(q, k, rules)

    return Kernel(run, reason)


def _on_mesh(
    f: Callable[..., Array],
    rules: Rules | None,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None,
) -> Array:
    """f(q, k, v, segment_ids) of each device's part, on the mesh of `jax.set_mesh`.

    Without rules, or on a mesh of one device, it is a plain call.
    """
    if rules is None or on_one_device():
        return f(q, k, v, segment_ids)
    queries, keys = rules.partition(_QUERIES), rules.partition(_KEYS)
    ids = rules.partition(_QUERIES[:2])
    # Not checked: Pallas calls do not say over which axes their results vary.
    split = jax.shard_map(
        f, in_specs=(queries, keys, keys, ids), out_specs=queries, check_vma=False
    )
    return split(q, k, v, segment_ids)


def _why_not_split(q: Array, k: Array, rules: Rules | None) -> str | None:
    """Why the arguments cannot lie on the mesh as `rules` says, or None."""
    if rules is None or on_one_device():
        return None
    mesh = jax.sharding.get_abstract_mesh()
    for x, axes in ((q, _QUERIES), (k, _KEYS)):
        for size, axis, entry in zip(x.shape, axes, rules.partition(axes), strict=True):
            parts = num_parts(entry, mesh)
            if parts > 1 and axis in ("seq", "head_dim"):
                return f"dimension {axis!r} is split over the mesh"
            if size % parts:
                return f"dimension {axis!r} of size {size} does not divide over {parts} devices"
    return None
