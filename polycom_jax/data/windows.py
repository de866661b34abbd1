"""Batches of windows of a token store, with Grain: a batch is a pure function of (seed, step)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Bool, Int

from polycom_jax._errors import require
from polycom_jax.data.store import TokenStore

Batch = dict[str, np.ndarray]
"""tokens, targets: int32 [B, T], `targets[b, t]` follows `tokens[b, t]`; mask: bool [B, T], False
where there is no target; segment_ids: int32 [B, T], the document within the window, from 1 (0:
padding); positions: int32 [B, T], from 0 at the window's start and at each document's. An end of
text is the first token of the document behind it, unless the tokenizer has others for that."""


def read_options(store: TokenStore) -> grain.ReadOptions:
    """How Grain reads: by threads, not processes, with a bounded few batches that wait ready.

    A batch is many short reads: of files that the system mostly holds in memory, or of a bucket,
    most of whose time is waiting.
    """
    if store.remote:
        return grain.ReadOptions(num_threads=32, prefetch_buffer_size=64)
    return grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


def train_batches(
    store: TokenStore,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """An endless iterator over training batches from `start_step` on; some rows of each, or all.

    Window w is `tokens[w * T : w * T + T + 1]`: T inputs and their T targets, whatever documents it
    cuts through; the tail shorter than a window is left out. Row b of step s is entry
    `s * batch_size + b` of the windows in an order shuffled anew each epoch, so any step is reached
    at the same cost, a host reads no rows but its own, and a corpus with fewer windows than a batch
    repeats within it.

    Args:
        store: of the train split.
        batch_size: rows of the global batch.
        seq_len: T.
        seed: of the order.
        start_step: first step to give.
        rows: those to give, as on a host that holds only some (`training.batch_rows`); None: all.

    Raises:
        InputError: the store is shorter than a window, `batch_size` is less than 1, a row is not in
            it, or `start_step` is negative.
    """
    rows = checked_rows(batch_size, rows)
    order = epochs(store, seq_len, seed)

    def batch(step: int) -> Batch:
        entries = [order[step * batch_size + row] for row in rows]
        return gather(store, np.array(entries, np.int64), seq_len)

    return batches_from(batch, batch_size, start_step, read_options(store))


def epochs(store: TokenStore, seq_len: int, seed: int) -> grain.MapDataset[int]:
    """All windows, in an order shuffled anew each epoch, without end."""
    windows = grain.MapDataset.range(count_windows(store, seq_len))
    return windows.seed(checked_seed(seed)).shuffle().repeat()


def batches_from(
    batch: Callable[[int], Batch], batch_size: int, start_step: int, options: grain.ReadOptions
) -> Iterator[Batch]:
    """An endless iterator over `batch(step)` from `start_step` on.

    Raises:
        InputError: `start_step` is negative.
    """
    require(start_step >= 0, f"start_step={start_step} must be at least 0.")
    steps = grain.MapDataset.range(start_step, sys.maxsize // batch_size)
    return iter(steps.map(batch).to_iter_dataset(options))


def count_windows(store: TokenStore, seq_len: int) -> int:
    """Number of windows that an epoch of training has.

    Raises:
        InputError: there is none.
    """
    num_windows = store.num_targets // _checked(seq_len)
    require(
        num_windows >= 1,
        f"The training text has {store.num_targets} targets, less than one window of"
        f" seq_len={seq_len}; give more text or a seq_len of at most {store.num_targets}.",
    )
    return num_windows


def eval_batches(
    store: TokenStore,
    *,
    batch_size: int,
    seq_len: int,
    stride: int | None = None,
    rows: Sequence[int] | None = None,
    tokens: int | None = None,
) -> "EvalBatches":
    """A sized iterable over all windows in order; every target of the store counts exactly once.

    With `tokens`, over so many of the windows as have that many, spread evenly over the store.

    Windows begin every `stride` tokens. Where they overlap, a target counts in the first of its
    windows, so behind the first window each has `seq_len - stride` tokens or more before it
    (Baevski and Auli, arXiv 1809.10853, section 5.1).

    The last window is padded, and so are the last rows: there the mask is False. There are as many
    batches whatever `rows` are wanted of them (see `train_batches`).

    Args:
        store: of the text.
        batch_size: rows of the global batch.
        seq_len: T.
        stride: from window to window; None: `seq_len`, windows side by side.
        rows: as in `train_batches`.
        tokens: to read, in whole windows; None: all.

    Raises:
        InputError: `batch_size`, `seq_len` or `tokens` is less than 1, a row is not in the batch,
            or `stride` is not from 1 to `seq_len`.
    """
    stride = _checked(seq_len) if stride is None else stride
    require(1 <= stride <= seq_len, f"stride={stride} must be from 1 to seq_len={seq_len}.")
    require(tokens is None or tokens >= 1, f"tokens={tokens} must be at least 1.")
    rows = checked_rows(batch_size, rows)
    return EvalBatches(store, batch_size, seq_len, rows, stride, tokens)


@dataclass(frozen=True, eq=False)
class EvalBatches:
    """What `eval_batches` returns: `len` batches, as often as it is iterated over."""

    store: TokenStore
    batch_size: int
    seq_len: int
    rows: Sequence[int]
    stride: int
    tokens: int | None = None

    @property
    def num_windows(self) -> int:
        """Windows that the store has."""
        behind_first = max(0, self.store.num_targets - self.seq_len)
        return 1 + -(-behind_first // self.stride)

    @property
    def num_read(self) -> int:
        """Windows that are read."""
        if self.tokens is None:
            return self.num_windows
        return min(self.num_windows, -(-self.tokens // self.stride))

    @property
    def share(self) -> float:
        """How much of the store is read: the share of its places that are in some window once."""
        windows = self._spread(np.arange(self.num_read))
        ends = np.minimum(windows * self.stride + self.seq_len, self.store.num_targets)
        begins = windows * self.stride + np.where(windows > 0, self.seq_len - self.stride, 0)
        return float(np.sum(ends - begins)) / self.store.num_targets

    def __len__(self) -> int:
        return -(-self.num_read // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        steps = grain.MapDataset.range(len(self))
        return iter(steps.map(self._batch).to_iter_dataset(read_options(self.store)))

    def _batch(self, step: int) -> Batch:
        places = step * self.batch_size + np.array(self.rows, np.int64)
        # Behind all there is padding.
        windows = np.where(places < self.num_read, self._spread(places), self.num_windows)
        return gather(self.store, windows, self.seq_len, self.stride)

    def _spread(self, index: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        return index * self.num_windows // self.num_read


def gather(
    store: TokenStore, windows: Int[np.ndarray, "B"], seq_len: int, stride: int | None = None
) -> Batch:
    """The batch of these windows, which begin every `stride` tokens (None: every `seq_len`).

    Positions past the store's end are padding; masked are targets that the window before has, and
    what stands before a document where that is no target.
    """
    stride = stride or seq_len
    start = windows[:, None] * stride
    index = np.arange(seq_len, dtype=np.int32)
    inside = start + index < store.num_targets
    mask = inside & ((windows[:, None] == 0) | (index >= seq_len - stride))
    before = len(store.begin)
    stream = _read_rows(store, start[:, 0] - before, before + seq_len + 1)
    begins = _begins(store, stream)
    if before:
        mask &= ~_given(begins, before)[:, 1 + before :]
    own = stream[:, before:]
    new = begins[:, before:-1]
    new[:, 0] = True  # what goes on from the window before begins here
    batch = {
        "tokens": own[:, :-1],
        "targets": own[:, 1:],
        "segment_ids": np.cumsum(new, axis=1, dtype=np.int32),
        "positions": index - np.maximum.accumulate(new * index, axis=1),
    }
    if not inside.all():
        batch = {name: inside * x for name, x in batch.items()}
    return {**batch, "mask": mask}


def _read_rows(store: TokenStore, starts: Int[np.ndarray, "B"], size: int) -> np.ndarray:
    """The tokens from each start on; ends of text where there are none."""
    rows, count = np.full((len(starts), size), store.eot, np.int32), store.num_tokens
    for row, start in zip(rows, starts.tolist(), strict=True):
        if 0 <= start <= count - size:
            row[:] = store.read(start, start + size)
        elif start < count:
            found = store.read(max(start, 0), start + size)
            skipped = max(-start, 0)
            row[skipped : skipped + len(found)] = found
    return rows


def _begins(store: TokenStore, stream: Int[np.ndarray, "B n"]) -> Bool[np.ndarray, "B n"]:
    """Where a document begins, what stands before its text included; the first column is False.

    Where ends of text are shared, each begins a document; else what follows one does, unless it is
    itself one that stands before a text (some tokenizers put it there beside others).
    """
    ends = stream == store.eot
    if not store.begin:
        return ends
    found = np.zeros_like(ends)
    found[:, 1:] = ends[:, :-1]
    if store.eot in store.begin:
        for place, token in enumerate(store.begin):
            width = stream.shape[1] - place
            found[:, :width] &= stream[:, place:] == token
    return found


def _given(begins: Bool[np.ndarray, "B n"], count: int) -> Bool[np.ndarray, "B n"]:
    """The first `count` tokens of each document."""
    found = begins.copy()
    for shift in range(1, count):
        found[:, shift:] |= begins[:, :-shift]
    return found


def checked_rows(batch_size: int, rows: Sequence[int] | None) -> Sequence[int]:
    """`rows`, or all of a batch.

    Raises:
        InputError: `batch_size` is less than 1, or a row is not in the batch.
    """
    require(batch_size >= 1, f"batch_size={batch_size} must be at least 1.")
    if rows is None:
        return range(batch_size)
    rows = [int(row) for row in rows]
    outside = [row for row in rows if not 0 <= row < batch_size]
    require(not outside, f"rows={outside} must be from 0 to batch_size={batch_size} less one.")
    return rows


def _checked(seq_len: int) -> int:
    require(seq_len >= 1, f"seq_len={seq_len} must be at least 1.")
    return seq_len


def checked_seed(seed: int) -> int:
    """`seed`; `InputError` where it is not in [0, 2**32)."""
    require(0 <= seed < 2**32, f"seed={seed} must be in [0, 2**32).")
    return seed
