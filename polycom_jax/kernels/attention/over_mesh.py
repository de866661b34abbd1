"""Attention on the devices of a mesh: every device has its rows of the batch and its heads.

Kernels are opaque to GSPMD, and so is a loop over tiles of the batch: inside `jax.shard_map` they
see what one device holds. No device needs anything of another.
"""

import math
from collections.abc import Callable

import jax
from jaxtyping import Array

from polycom_jax.sharding import Rules

_QUERIES = ("batch", "seq", "heads", "head_dim")
_KEYS = ("batch", "seq", "kv_heads", "head_dim")


def over_mesh(
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
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty or mesh.size == 1:
        return f(q, k, v, segment_ids)
    queries, keys = rules.partition(_QUERIES), rules.partition(_KEYS)
    ids = rules.partition(_QUERIES[:2])
    # Not checked: Pallas calls do not say over which axes their results vary.
    split = jax.shard_map(
        f, in_specs=(queries, keys, keys, ids), out_specs=queries, check_vma=False
    )
    return split(q, k, v, segment_ids)


def why_not_split(q: Array, k: Array, rules: Rules | None) -> str | None:
    """Why the arguments cannot lie on the mesh as `rules` says, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty or mesh.size == 1:
        return None
    for x, axes in ((q, _QUERIES), (k, _KEYS)):
        for size, axis, entry in zip(x.shape, axes, rules.partition(axes), strict=True):
            names = (entry,) if isinstance(entry, str) else tuple(entry or ())
            parts = math.prod(mesh.shape[name] for name in names)
            if parts > 1 and axis in ("seq", "head_dim"):
                return f"dimension {axis!r} is split over the mesh"
            if size % parts:
                return f"dimension {axis!r} of size {size} does not divide over {parts} devices"
    return None
