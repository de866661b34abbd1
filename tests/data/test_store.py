"""A store is its shards end to end, and a window needs nothing but its own tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polycom_jax.data.store import TokenStore, files
from polycom_jax.data.windows import gather

EOT = 9
LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=30)
BEGINS = [(), (7,), (7, 8), (9, 7), (7, 9), (9, 9)]


def streamed(lengths: list[int], begin: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The tokens of a split of documents of these lengths, and where each document begins."""
    stream, offsets, value = [], [], 0
    for length in lengths:
        offsets.append(len(stream))
        text = [(value + i) % 7 for i in range(length)]
        value += length
        stream += [*begin, *text, EOT] if begin else [EOT, *text]
    return (stream if begin else [*stream, EOT]), offsets


def cut(stream: list[int], begin: tuple[int, ...], places: list[int]) -> TokenStore:
    """A store of these tokens, in shards that end anywhere."""
    kept = np.array(stream if begin else stream[:-1], np.uint16)
    ends = np.unique([*(1 + place % len(kept) for place in places), len(kept)])
    parts = np.split(kept, ends[:-1])
    return TokenStore(ends, lambda shard: parts[shard], EOT, 0, 0, begin)


def from_offsets(
    stream: list[int], offsets: list[int], begin: int, window: int, size: int, stride: int
) -> dict[str, list[Any]]:
    """A row of a batch, by the places where documents begin."""
    row: dict[str, list[Any]] = {
        name: [] for name in ("tokens", "targets", "segment_ids", "positions", "mask")
    }
    start = window * stride
    for index, place in enumerate(range(start, start + size)):
        if place >= len(stream) - 1:
            values: dict[str, Any] = dict.fromkeys(row, 0)
        else:
            own = [offset for offset in offsets if offset <= place]
            follows = max(offset for offset in offsets if offset <= place + 1)
            values = {
                "tokens": stream[place],
                "targets": stream[place + 1],
                "segment_ids": 1 + sum(offset > start for offset in own),
                "positions": place - max(own[-1], start),
                "mask": (index >= size - stride or window == 0) and place + 1 - follows >= begin,
            }
        for name, value in values.items():
            row[name].append(value)
    return row


@settings(max_examples=150, deadline=None)
@given(
    LENGTHS,
    st.sampled_from(BEGINS),
    st.lists(st.integers(0, 10**6), max_size=8),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_segments_and_positions_from_ends_of_text_are_those_from_offsets(
    lengths: list[int], begin: tuple[int, ...], places: list[int], size: int, stride: int
):
    if EOT in begin:
        lengths = [length + 1 for length in lengths]
    stream, offsets = streamed(lengths, begin)
    store, stride = cut(stream, begin, places), min(stride, size)
    count = 2 + (len(stream) - 1) // stride
    batch = gather(store, np.arange(count), size, stride)
    for window in range(count):
        expected = from_offsets(stream, offsets, len(begin), window, size, stride)
        assert {name: batch[name][window].tolist() for name in expected} == expected, window


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.sampled_from(BEGINS), st.lists(st.integers(0, 10**6), max_size=12), st.data())
def test_any_range_is_read_over_any_shards(
    lengths: list[int], begin: tuple[int, ...], places: list[int], data: st.DataObject
):
    stream, _ = streamed(lengths, begin)
    store = cut(stream, begin, places)
    assert store.tokens.tolist() == stream
    start = data.draw(st.integers(0, len(stream) - 1))
    stop = data.draw(st.integers(start + 1, len(stream) + 5))
    assert store.read(start, stop).tolist() == stream[start:stop]


def test_only_the_files_that_were_read_last_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("polycom_jax.data.store.OPEN_SHARDS", 2)
    paths = [tmp_path / f"{shard}.bin" for shard in range(5)]
    for shard, path in enumerate(paths):
        np.full(3, shard, np.uint16).tofile(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = files(paths, [3] * 5, np.dtype(np.uint16))
    store = TokenStore(np.arange(1, 6) * 3, opened, EOT, 5, 0)
    for _ in range(3):
        assert store.tokens.tolist() == [*np.repeat(range(5), 3), EOT]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    paths[4].write_bytes(b"12")
    with pytest.raises(OSError, match=r"ends before its last token.*4\.bin"):
        store.read(12, 15)
