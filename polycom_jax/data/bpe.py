"""Trains a BPE on a share of the documents to train on, so that its time is bounded."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from polycom_jax.data.config import DataConfig
from polycom_jax.data.documents import whole_characters
from polycom_jax.data.reader import Reader, train_rows
from polycom_jax.data.rows import Row
from polycom_jax.data.shard import Cleaner
from polycom_jax.data.tokenizers import train_bpe


def chosen(reader: Reader, bound: int, wanted: int) -> Iterator[Row]:
    """Every k-th document to train on, so that about `wanted` bytes come from the whole corpus.

    A long document is cut: it would outweigh the others, and a trainer holds what it is given.
    """
    most = max(1, -(-wanted // 8))
    stride = _stride(reader, bound, most, wanted)
    for index, (where, raw) in enumerate(train_rows(reader, bound)):
        if index % stride == 0:
            yield where, _beginning(raw or b"", most)


def train(path: Path, rows: Iterable[Row], cfg: DataConfig, vocab_size: int) -> None:
    """Trains on these documents."""
    train_bpe(Cleaner(cfg.undecodable).texts(rows), vocab_size, path)


def _stride(reader: Reader, bound: int, most: int, wanted: int) -> int:
    """Of how many documents one is taken, by the mean length of 256 of them, evenly spread."""
    lengths = array("q", (min(len(raw or b""), most) for _, raw in train_rows(reader, bound)))
    mean = float(np.mean(lengths[:: max(1, len(lengths) // 256)]))
    return max(1, round(len(lengths) * mean / max(1, wanted)))


def _beginning(raw: bytes, size: int) -> bytes:
    return raw if len(raw) <= size else raw[: whole_characters(raw[:size])]
