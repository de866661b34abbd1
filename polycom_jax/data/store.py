"""The token store: a split as one sequence of ids, its shards end to end, read by ranges."""

import errno
import functools
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from polycom_jax import storage

OPEN_SHARDS = 256
"""Shards that are kept open at a time; a process may open few files."""


class Sliced(Protocol):
    """The tokens of a shard, of which only what is sliced is read."""

    def __getitem__(self, wanted: slice, /) -> np.ndarray: ...


OpenShard = Callable[[int], Sliced]
"""Number of a shard -> its tokens."""


@dataclass(frozen=True, eq=False)
class TokenStore:
    """`EOT d1 EOT d2 ... EOT dn EOT`, over any number of shards.

    One end-of-text token stands before each document and ends the one before, so every token of the
    text, the first of a document too, is the successor (the target) of exactly one position.

    Where the tokenizer puts something else before a text, `BOS` for instance, that is
    `BOS d1 EOT BOS d2 EOT ... BOS dn EOT`. `BOS` is given and not predicted: it is no target.

    No document encodes to the end of text, so where documents begin is read off the tokens.

    Attributes:
        ends: int64 [shards], the number of tokens up to the end of each shard.
        open_shard: opens one.
        eot: the token that ends a text.
        num_documents: how many there are.
        num_bytes: length in UTF-8 of the text that the tokens can give back: what bits a byte are
            counted by.
        begin: the tokens before each document, where these are not the end of the one before.
        lengths: length of a document, end of text not counted -> how many have it.
        remote: reading takes a while each time, and many ranges can be read at once.
    """

    ends: Int[np.ndarray, "shards"]
    open_shard: OpenShard
    eot: int
    num_documents: int
    num_bytes: int
    begin: tuple[int, ...] = ()
    lengths: Mapping[int, int] = field(default_factory=dict)
    remote: bool = False

    @functools.cached_property
    def _bounds(self) -> list[int]:
        return [0, *self.ends.tolist()]

    @functools.cached_property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return int(self.ends[-1]) + (not self.begin)

    @property
    def num_targets(self) -> int:
        """Number of tokens that follow another: what a full evaluation predicts, and `begin`s."""
        return self.num_tokens - 1

    def documents_longer_than(self, tokens: int) -> int:
        """Number of documents of more than `tokens` tokens, end of text not counted.

        With a context's length: no window holds such a document whole.
        """
        return sum(count for length, count in self.lengths.items() if length > tokens)

    def read(self, start: int, stop: int) -> Int[np.ndarray, "tokens"]:
        """The tokens `start` to `stop` (not included), as many of them as there are."""
        bounds, parts = self._bounds, []
        shard = bisect_right(bounds, start) - 1
        while start < stop and shard < len(self.ends):
            begin, end = bounds[shard], bounds[shard + 1]
            part = self.open_shard(shard)[start - begin : stop - begin]
            if stop <= end and not parts:
                return part
            parts.append(part)
            start, shard = end, shard + 1
        if start < stop and not self.begin:  # the end of the last document, in no shard
            parts.append(np.array([self.eot], parts[-1].dtype if parts else np.int32))
        return np.concatenate(parts)

    @property
    def tokens(self) -> Int[np.ndarray, "tokens"]:
        """All tokens."""
        return self.read(0, self.num_tokens)


def files(paths: Sequence[storage.Place], sizes: Sequence[int], dtype: np.dtype) -> OpenShard:
    """Opens files of tokens on a disk; the last few stay open."""

    @functools.lru_cache(OPEN_SHARDS)
    def open_shard(shard: int) -> LocalShard:
        return LocalShard(paths[shard], sizes[shard], dtype)

    return open_shard


class LocalShard:
    """The tokens of a file on a disk.

    It is read, and not mapped: a page fault in the midst of a large file reads far more than the
    window, and what a disk refuses would end the process.
    """

    def __init__(self, path: storage.Place, size: int, dtype: np.dtype) -> None:
        self._path, self._size, self._dtype, self._width = path, size, dtype, dtype.itemsize
        self._file = os.open(path, os.O_RDONLY)

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(self._size)
        begin, size = start * self._width, (stop - start) * self._width
        data = os.pread(self._file, size, begin)
        while len(data) < size:  # one call gives at most 2 GiB
            more = os.pread(self._file, size - len(data), begin + len(data))
            if not more:
                raise OSError(errno.EIO, "ends before its last token", str(self._path))
            data += more
        return np.frombuffer(data, self._dtype)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def ranged(places: Sequence[Any], sizes: Sequence[int], dtype: np.dtype) -> OpenShard:
    """Opens files of tokens in a bucket, of which only the ranges that are sliced are fetched."""
    return lambda shard: RemoteShard(places[shard], sizes[shard], dtype)


class RemoteShard:
    """The tokens of a file in a bucket."""

    def __init__(self, place: Any, size: int, dtype: np.dtype) -> None:
        self._place, self._size, self._dtype = place, size, dtype

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(self._size)
        width = self._dtype.itemsize
        data = storage.read(self._place, start * width, (stop - start) * width)
        return np.frombuffer(data, self._dtype)
