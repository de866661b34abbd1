"""Documents to a shard: their ids one after the other, and the counts of what went into it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from polycom_jax._errors import InputError
from polycom_jax.data.copies import listed
from polycom_jax.data.encoding import lost_bytes
from polycom_jax.data.rows import Row
from polycom_jax.data.tokenizers import Tokenizer

_BATCH_BYTES = 1 << 20
_BLOCK_CHARACTERS = 1 << 18

COUNTS = ("documents", "bytes", "tokens", "empty", "damaged", "undecodable", "replaced", "lost")
"""What is counted of a shard: documents, bytes of their text, tokens; documents that were empty,
damaged, or not in UTF-8; and of the bytes, those replaced (U+FFFD in the place of what is not
UTF-8) and those lost (of other characters that the tokenizer cannot give back, see `lost_bytes`).
"""


class Cleaner:
    """Raw documents to text, in one place for every source, counting what was not as it should be.

    Empty documents are skipped; `undecodable` ("replace", "skip", "error") says what happens to
    bytes that are not UTF-8.
    """

    def __init__(self, undecodable: str) -> None:
        self._undecodable = undecodable
        self.counts: Counter[str] = Counter()

    def texts(self, rows: Iterable[Row]) -> Iterator[str]:
        """The usable documents, in order."""
        for where, raw in rows:
            text = self.text(where, raw)
            if text is not None:
                yield text

    def text(self, where: str, raw: bytes | None) -> str | None:
        """A document's text; None: it is not usable.

        Raises:
            InputError: it is not UTF-8, and that is an error.
        """
        if not raw:
            self.counts["damaged" if raw is None else "empty"] += 1
            return None
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.counts["undecodable"] += 1
            if self._undecodable == "error":
                raise InputError(
                    f"{where} is not UTF-8 ({error.reason} at byte {error.start});"
                    " data.undecodable='replace' or 'skip' would go on."
                ) from error
        if self._undecodable == "skip":
            return None
        text = raw.decode("utf-8", "replace")
        self.counts["replaced"] += len("\ufffd".encode()) * text.count("\ufffd")
        return text


@dataclass
class Shard:
    """Consecutive documents as tokens.

    Where a text begins with the end of the one before: `EOT d1 EOT d2 ... EOT dn`. With another
    beginning, `BOS` for instance: `BOS d1 EOT BOS d2 EOT ... BOS dn EOT`.

    Attributes:
        tokens: their bytes, of the store's dtype.
        counts: see `COUNTS`.
        lengths: number of documents of each length: of tokens, what begins them included where
            that is not the end of text, which is not counted.
        listing: of each document `copies.listed`, if the builder was asked for it.
    """

    tokens: bytearray = field(default_factory=bytearray)
    counts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    listing: bytearray = field(default_factory=bytearray)


def token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The type that the ids are kept in."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def shares_ends(tokenizer: Tokenizer) -> bool:
    """Whether the end of one text begins the next."""
    return tokenizer.begin == (tokenizer.eot,)


class ShardBuilder:
    """Tokenises documents, about a megabyte of text at a time, however long one is."""

    def __init__(
        self, tokenizer: Tokenizer, undecodable: str = "replace", *, listing: bool = False
    ) -> None:
        self._listing = listing
        self._tokenizer, self._dtype = tokenizer, token_dtype(tokenizer)
        self._cleaner = Cleaner(undecodable)
        shared = shares_ends(tokenizer)
        self._begin = np.array(tokenizer.begin, self._dtype).tobytes()
        self._end = b"" if shared else np.array([tokenizer.eot], self._dtype).tobytes()
        self._given = 0 if shared else len(tokenizer.begin)
        self._shard = Shard(counts=self._cleaner.counts)
        self._held: list[_Block] = []
        self._held_size = 0
        self._length = -1  # of the document at the shard's end; -1: there is none

    def add(self, where: str, raw: bytes | None) -> None:
        """The next document, which stands at `where`; None: it could not be read.

        Raises:
            InputError: it is not UTF-8, and that is an error; or the tokenizer has no id for a
                character.
        """
        undecodable = self._cleaner.counts["undecodable"]
        text = self._cleaner.text(where, raw)
        replaced = self._cleaner.counts["undecodable"] > undecodable
        if text and self._listing:
            self._shard.listing += listed(text)
        for block in _blocks(text or ""):
            self._held.append(block._replace(replaced=replaced))
            self._held_size += len(block.text)
            if self._held_size >= _BATCH_BYTES:
                self._encode()

    def finish(self) -> Shard:
        """The shard of all documents; nothing can be added any more."""
        self._encode()
        self._close()
        self._shard.counts["tokens"] = len(self._shard.tokens) // self._dtype.itemsize
        return self._shard

    def _encode(self) -> None:
        blocks, tokenizer = self._held, self._tokenizer
        leads = ["" if block.first else tokenizer.lead(block.text) for block in blocks]
        given = [lead + block.text for lead, block in zip(leads, blocks, strict=True)]
        encoded = tokenizer.encode_batch(given)
        for block, lead, text, ids in zip(blocks, leads, given, encoded, strict=True):
            before = tokenizer.encode(lead) if lead else ids[:0]
            if not tokenizer.exact:
                again = tokenizer.decode(ids.tolist())
                # What stands for bytes that are not UTF-8 is counted as replaced, and but once.
                text = text.replace("\ufffd", "") if block.replaced else text
                self._shard.counts["lost"] += lost_bytes(text, again)
                self._shard.counts["lost"] -= lost_bytes(lead, tokenizer.decode(before.tolist()))
            self._append(block, ids[len(before) :])
        self._held, self._held_size = [], 0

    def _append(self, block: "_Block", ids: np.ndarray) -> None:
        shard = self._shard
        if block.first:
            self._close()
            self._length = self._given
            shard.tokens += self._begin
            shard.counts["documents"] += 1
        self._length += len(ids)
        shard.counts["bytes"] += len(block.text.encode())
        shard.tokens += ids.astype(self._dtype).tobytes()

    def _close(self) -> None:
        """Ends the document at the shard's end, if there is one."""
        if self._length >= 0:
            self._shard.tokens += self._end
            self._shard.lengths[self._length] += 1
            self._length = -1


class _Block(NamedTuple):
    """A part of a document; a tokenizer's memory goes with the length of what it is given."""

    text: str
    first: bool
    replaced: bool = False


def _blocks(text: str) -> Iterator[_Block]:
    """The document in parts, each up to the last line end that leaves it short enough."""
    start = 0
    while len(text) - start > _BLOCK_CHARACTERS:
        end = text.rfind("\n", start, start + _BLOCK_CHARACTERS) + 1
        end = end if end > start else start + _BLOCK_CHARACTERS
        yield _Block(text[start:end], first=start == 0)
        start = end
    if text[start:]:
        yield _Block(text[start:], first=start == 0)
