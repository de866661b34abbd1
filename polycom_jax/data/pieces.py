"""Tokenising a source piece by piece, by any number of workers, and putting the pieces together.

    plan.json             how the source is cut
    train/000000.bin      tokens of a piece's documents, one file a split
    heldout/000000.bin
    train/000000.documents, heldout/000000.documents   where `copies` compares the two
    pieces/000000.json    counts and checksums: a piece that has this is done
    index.json            written last: with it, all is there

A piece is a pure function of the source, so that whoever writes one writes the same bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.data.copies import listing_name
from polycom_jax.data.files import Place
from polycom_jax.data.plan import Plan
from polycom_jax.data.reader import SPLITS, Reader, Split, split_of
from polycom_jax.data.shard import COUNTS, Shard, ShardBuilder, shares_ends, token_dtype
from polycom_jax.data.tokenizers import Tokenizer, unpacked

_THREADS = 32  # most of the time of reading from a bucket is waiting

PLAN, INDEX, PIECES, TOKENIZER = "plan.json", "index.json", "pieces", "tokenizer.json"


def shard_name(split: Split, piece: int) -> str:
    """The file of a piece's tokens, within the folder."""
    return f"{split}/{piece:06}.bin"


def piece_name(piece: int) -> str:
    """The file that says what a piece holds, within the folder."""
    return f"{PIECES}/{piece:06}.json"


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, on any machine: it can be pickled.

    Attributes:
        folder: where pieces are written.
        reader: of the source.
        plan: how it is cut.
        tokenizer_files: what `tokenizers.packed` gave.
        exact: the tokenizer is known to give any text back.
        undecodable: see `Cleaner`.
        name: of the source, for people.
        known: pieces that lie prepared already: the folder, and the number there.
        listing: documents are listed, for `copies`.
    """

    folder: str
    reader: Reader
    plan: Plan
    tokenizer_files: Mapping[str, bytes]
    exact: bool
    undecodable: str
    name: str
    known: Mapping[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])
    listing: bool = False

    def tokenizer(self) -> Tokenizer:
        """What encodes."""
        return unpacked(self.tokenizer_files, exact=self.exact)

    def missing(self) -> list[int]:
        """The pieces that are not done yet."""
        names = storage.entries(storage.place(self.folder) / PIECES)
        done = {f"{PIECES}/{name}" for name in names}
        return [k for k in range(len(self.plan.pieces)) if piece_name(k) not in done]


def sha256(data: bytes) -> str:
    """The checksum that files are kept with."""
    return hashlib.sha256(data).hexdigest()


def tokenise(job: Job, piece: int, tokenizer: Tokenizer) -> Mapping[Split, Shard]:
    """The shards of a piece's documents.

    Raises:
        InputError: the source cannot be read, or has changed; or the tokenizer cannot encode it.
    """
    builders: dict[Split, ShardBuilder] = {}
    for split in SPLITS:
        builders[split] = ShardBuilder(tokenizer, job.undecodable, listing=job.listing)
    origins = job.reader.origins
    for span in job.plan.pieces[piece]:
        for where, raw in job.reader.rows(*span):
            split = split_of(origins[span.origin].side, raw, job.plan.bound)
            builders[split].add(where, raw)
    return {split: builder.finish() for split, builder in builders.items()}


def write_piece(job: Job, piece: int, tokenizer: Tokenizer) -> int:
    """Tokenises a piece and writes it, whole; returns its number of tokens.

    One that lies prepared is taken over as it is.
    """
    if piece in job.known and (tokens := _taken_over(job, piece)) is not None:
        return tokens
    folder, about = storage.place(job.folder), {}
    shards = tokenise(job, piece, tokenizer)
    for split, shard in shards.items():
        data = bytes(shard.tokens)
        if data:
            storage.write(folder / shard_name(split, piece), data)
        if job.listing:
            storage.write(folder / listing_name(split, piece), bytes(shard.listing))
        about[split] = {
            "counts": {name: shard.counts[name] for name in COUNTS},
            "lengths": sorted(shard.lengths.items()),
            "sha256": sha256(data),
        }
    storage.write(folder / piece_name(piece), json.dumps(about).encode())
    return sum(shard.counts["tokens"] for shard in shards.values())


def _taken_over(job: Job, piece: int) -> int | None:
    """Puts a piece that lies prepared to the job's own; None: it is not whole there."""
    place, number = job.known[piece]
    there, here = storage.place(place), storage.place(job.folder)
    try:
        about = json.loads(storage.read(there / piece_name(number)))
        for split in SPLITS:
            if job.listing:
                listing = there / listing_name(split, number)
                storage.copy(listing, here / listing_name(split, piece))
            if about[split]["counts"]["tokens"]:
                shard = there / shard_name(split, number)
                _check_whole(shard, about[split]["sha256"])
                storage.copy(shard, here / shard_name(split, piece))
    except (OSError, ValueError, KeyError):  # Then it is tokenised, as if it were not there.
        return None
    storage.write(here / piece_name(piece), json.dumps(about).encode())
    return sum(about[split]["counts"]["tokens"] for split in SPLITS)


def _check_whole(shard: Place, digest: str) -> None:
    """Raises `ValueError` for other bytes on a disk; a bucket keeps checksums itself."""
    if not storage.is_remote(shard) and sha256(storage.read(shard)) != digest:
        raise ValueError(f"{shard} is damaged")


def build_index(job: Job, tokenizer: Tokenizer) -> dict[str, Any]:
    """What index.json says, from what the pieces say.

    Raises:
        InputError: a piece's file cannot be understood.
    """
    folder = storage.place(job.folder)
    splits = {split: _SplitIndex() for split in SPLITS}
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(partial(_read_piece, folder), range(len(job.plan.pieces)))
        for piece, about in enumerate(found):
            for split in SPLITS:
                splits[split].add(piece, about[split])
    return {
        "dtype": token_dtype(tokenizer).name,
        "eot": tokenizer.eot,
        "begin": [] if shares_ends(tokenizer) else list(tokenizer.begin),
        "splits": {split: found.to_json() for split, found in splits.items()},
    }


class _SplitIndex:
    """The shards of a split so far."""

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.sizes: list[int] = []
        self.sha256: list[str] = []
        self.counts: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()

    def add(self, piece: int, about: Mapping[str, Any]) -> None:
        """The next shard; one without tokens has no file."""
        self.counts.update(about["counts"])
        for length, count in about["lengths"]:
            self.lengths[length] += count
        if about["counts"]["tokens"]:
            self.pieces.append(piece)
            self.sizes.append(about["counts"]["tokens"])
            self.sha256.append(about["sha256"])

    def to_json(self) -> dict[str, Any]:
        """What the index says of the split."""
        return {
            "pieces": self.pieces,
            "ends": np.cumsum(self.sizes, dtype=np.int64).tolist(),
            "sha256": self.sha256,
            "counts": dict(self.counts),
            "lengths": sorted(self.lengths.items()),
        }


def _read_piece(folder: Place, piece: int) -> dict[Split, Any]:
    place = folder / piece_name(piece)
    try:
        return json.loads(storage.read(place))
    except ValueError as error:
        raise InputError(
            f"{place} is damaged ({error}); delete it, and the next start prepares it again."
        ) from error
