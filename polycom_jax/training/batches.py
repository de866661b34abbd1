"""Batches as global arrays over processes: which rows a process holds, and how they lie."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from polycom_jax._errors import InputError, require
from polycom_jax.sharding import Rules, own_mesh
from polycom_jax.training.loss import Batch
from polycom_jax.training.state import split_count


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
    """How the arrays of a batch lie on the mesh."""
    return NamedSharding(own_mesh(mesh, rules), rules.partition(("batch", "seq")))


def batch_rows(batch_size: int, mesh: Mesh, rules: Rules | None = None) -> Int[np.ndarray, "rows"]:
    """The rows of the global batch that this process's devices hold, ascending.

    Devices follow the network, not the processes, so the rows need not be consecutive; and where
    `tensor` reaches beyond a process, others hold them too.

    Raises:
        InputError: the batch does not divide over the devices.
    """
    rules = rules or Rules()
    require(batch_size >= 1, f"batch_size={batch_size} must be at least 1: a batch has rows.")
    parts = split_count(mesh, rules, "batch")
    if batch_size % parts:
        raise InputError(
            f"batch_size={batch_size} does not divide over {parts} devices; "
            f"nearest: {' or '.join(str(n) for n in near(batch_size, parts))}."
        )
    places = batch_sharding(mesh, rules).addressable_devices_indices_map((batch_size, 1))
    blocks = [(index or (slice(None),))[0] for index in places.values()]
    return np.unique(np.concatenate([np.arange(batch_size)[block] for block in blocks]))


def put_batch(
    batch: Mapping[str, np.ndarray],
    mesh: Mesh,
    rules: Rules | None = None,
    *,
    batch_size: int | None = None,
) -> Batch:
    """Makes global arrays of this process's rows, those of `batch_rows`.

    Args:
        batch: name -> rows.
        mesh: where they go.
        rules: how they are split there.
        batch_size: rows of the global batch; None: these are all.

    Raises:
        InputError: the batch does not divide over the devices, or these are rows of others.
    """
    rules = rules or Rules()
    own = len(next(iter(batch.values())))
    size = own if batch_size is None else batch_size
    rows = batch_rows(size, mesh, rules)
    if own != len(rows):
        raise InputError(
            f"This process's devices hold {len(rows)} of batch_size={size} rows, and {own} were"
            " given; give those of batch_rows."
        )
    sharding = batch_sharding(mesh, rules)

    def put(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            block, *others = index or (slice(None),)
            start, stop, _ = block.indices(size)
            first = int(np.searchsorted(rows, start))
            return local[(slice(first, first + stop - start), *others)]

        return jax.make_array_from_callback((size, *local.shape[1:]), sharding, part)

    return {name: put(local) for name, local in batch.items()}


def near(value: int, multiple: int) -> list[int]:
    """The positive multiples next to `value`."""
    low = value // multiple * multiple
    return [n for n in (low, low + multiple) if n > 0]
