"""A store of 250 billion tokens that takes no room: opening it, and a batch late in training."""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import grain
import numpy as np

from polycom_jax.data import TokenStore
from polycom_jax.data.index import check_files, open_split, read_index, write_index
from polycom_jax.data.pieces import shard_name
from polycom_jax.data.windows import count_windows, gather

SHARDS = 25_000
TOKENS = 10_000_000
"""Tokens a shard."""
LATE = 1_000_000


def write(folder: Path) -> None:
    """Writes the index, and files that are nothing but holes."""
    for shard in range(SHARDS):
        _hole(folder / shard_name("train", shard))
    _hole(folder / shard_name("heldout", 0))
    write_index(
        folder,
        {
            "dtype": "uint16",
            "eot": 1,
            "begin": [],
            "splits": {"train": _split(SHARDS), "heldout": _split(1)},
            "files": {},
        },
    )


def _hole(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(2 * TOKENS)


def _split(shards: int) -> dict[str, Any]:
    return {
        "pieces": list(range(shards)),
        "ends": [TOKENS * (shard + 1) for shard in range(shards)],
        "sha256": ["0" * 64] * shards,
        "counts": {"documents": shards, "bytes": TOKENS * shards, "lost": 0, "replaced": 0},
        "lengths": [[length, 1] for length in range(100_000)],
    }


def opened(folder: Path) -> TokenStore:
    """What a run does at its start."""
    index = read_index(folder)
    check_files(folder, index)
    return open_split(folder, index, "train")


def drawing(store: TokenStore, rows: int, length: int, first: int) -> Callable[[], Any]:
    """Draws a batch of the next step from `first` on."""
    windows = count_windows(store, length)
    order = grain.MapDataset.range(windows).seed(0).shuffle().repeat()
    return partial(_draw, store, order, rows, length, count(first))


def _draw(store: TokenStore, order: Any, rows: int, length: int, steps: Any) -> Any:
    step = next(steps)
    entries = [order[step * rows + row] for row in range(rows)]
    return gather(store, np.array(entries, np.int64), length)
