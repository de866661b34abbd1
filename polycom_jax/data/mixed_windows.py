"""Batches of windows of several token stores, mixed by Grain: a function of (seed, step), too."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import grain
import numpy as np
from jaxtyping import Int

from polycom_jax._errors import require
from polycom_jax.data.store import TokenStore
from polycom_jax.data.windows import (
    Batch,
    batches_from,
    checked_rows,
    checked_seed,
    epochs,
    gather,
    read_options,
    train_batches,
)


def mixed_batches(
    stores: Sequence[TokenStore],
    weights: Sequence[float],
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """`train_batches` of several stores: of any run of windows each has its share by weight.

    Row b of step s is entry `s * batch_size + b` of `grain.MapDataset.mix`, which takes windows of
    the stores in turn and rounds shares to a hundredth of the smallest one. Store i gives its own
    windows in an order of seed + i, shuffled anew each of its epochs, so one that is small for its
    weight is repeated more often than others.

    Args:
        stores: of the train splits, all with one tokenizer.
        weights: of each store; only their ratios count.
        batch_size: see `train_batches`.
        seq_len: see `train_batches`.
        seed: see `train_batches`.
        start_step: see `train_batches`.
        rows: see `train_batches`.

    Raises:
        InputError: see `train_batches`; or there is not one positive weight for each store, or
            their tokens are of different tokenizers.
    """
    _check_mixture(stores, weights)
    shared = {"batch_size": batch_size, "seq_len": seq_len, "start_step": start_step, "rows": rows}
    if len(stores) == 1:
        return train_batches(stores[0], seed=seed, **shared)
    rows = checked_rows(batch_size, rows)
    orders = [
        epochs(store, seq_len, (checked_seed(seed) + index) % 2**32).map(partial(_tagged, index))
        for index, store in enumerate(stores)
    ]
    mixed = grain.MapDataset.mix(orders, weights)

    def batch(step: int) -> Batch:
        entries = np.array([mixed[step * batch_size + row] for row in rows], np.int64)
        return _gather_mixed(stores, entries.reshape(-1, 2), seq_len)

    slowest = max(stores, key=lambda store: store.remote)
    return batches_from(batch, batch_size, start_step, read_options(slowest))


def _tagged(index: int, window: int) -> tuple[int, int]:
    return index, window


def _gather_mixed(
    stores: Sequence[TokenStore], entries: Int[np.ndarray, "B 2"], seq_len: int
) -> Batch:
    """The batch of rows (store, window)."""
    found: Batch = {}
    for index, store in enumerate(stores):
        own = np.flatnonzero(entries[:, 0] == index)
        for name, part in gather(store, entries[own, 1], seq_len).items():
            whole = found.setdefault(name, np.empty((len(entries), seq_len), part.dtype))
            whole[own] = part
    return found


def _check_mixture(stores: Sequence[TokenStore], weights: Sequence[float]) -> None:
    require(
        len(stores) == len(weights) >= 1,
        f"{len(stores)} stores and {len(weights)} weights: give one for each, and at least one.",
    )
    for weight in weights:
        require(0 < weight < math.inf, f"weights={tuple(weights)} must be positive and finite.")
    kinds = {(store.eot, store.begin) for store in stores}
    require(
        len(kinds) == 1,
        "The stores end or begin their texts with different tokens: they are of different"
        " tokenizers; prepare all with one.",
    )
