"""The token store: the documents of a split as one flat array of ids, and where each starts."""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polycom_jax._errors import InputError, require
from polycom_jax.data.encoding import lost_bytes
from polycom_jax.data.tokenizers import Tokenizer

_BATCH_BYTES = 1 << 20
_BLOCK_CHARACTERS = 1 << 18

Where = Callable[[int], str]
"""Names the document with this index, at the start of a message."""


def _numbered(index: int) -> str:
    return f"Document {index + 1}"


@dataclass(frozen=True, eq=False)
class TokenStore:
    """`EOT d1 EOT d2 ... EOT dn EOT`, mapped from disk.

    One end-of-text token stands before each document and ends the one before, so every token of the
    text, the first of a document too, is the successor (the target) of exactly one position.

    Where the tokenizer puts something else before a text, `BOS` for instance, that is
    `BOS d1 EOT BOS d2 EOT ... BOS dn EOT`. `BOS` is given and not predicted: it is no target.

    Attributes:
        tokens: uint16 or uint32 [n].
        offsets: int64 [documents + 1]; document i is `tokens[offsets[i]:offsets[i + 1]]`, what
            stands before it included, and `offsets[-1]` is the last token of all.
        num_bytes: length in UTF-8 of the text that the tokens can give back: what bits a byte are
            counted by.
        begin: how many tokens before each document are no targets.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    num_bytes: int
    begin: int = 0

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def num_targets(self) -> int:
        """Number of tokens that follow another: what a full evaluation predicts, and `begin`s."""
        return len(self.tokens) - 1

    def documents_longer_than(self, tokens: int) -> int:
        """Number of documents of more than `tokens` tokens, end of text not counted.

        With a context's length: no window holds such a document whole.
        """
        return int(np.count_nonzero(np.diff(self.offsets) - 1 > tokens))


class Cleaner:
    """Raw documents to text, in one place for every source, counting what was not as it should be.

    Empty documents are skipped; `undecodable` ("replace", "skip", "error") says what happens to
    bytes that are not UTF-8, and `where` names the document with this index for the error.
    """

    def __init__(self, undecodable: str, where: Where = _numbered) -> None:
        self._undecodable = undecodable
        self._where = where
        self.seen = 0
        self.empty = 0
        self.damaged = 0
        self.undecodable = 0
        self.replaced = 0

    def texts(self, raws: Iterable[bytes | None]) -> Iterator[str]:
        """The usable documents, in order; None is one that could not be read."""
        for raw in raws:
            self.seen += 1
            if raw is None:
                self.damaged += 1
                continue
            if not raw:
                self.empty += 1
                continue
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                self.undecodable += 1
                if self._undecodable == "error":
                    raise InputError(
                        f"{self._where(self.seen - 1)} is not UTF-8 ({error.reason} at byte"
                        f" {error.start}); data.undecodable='replace' or 'skip' would go on."
                    ) from error
                if self._undecodable == "replace":
                    text = raw.decode("utf-8", "replace")
                    self.replaced += len("\ufffd".encode()) * text.count("\ufffd")
                    yield text


def write_store(
    folder: Path,
    raws: Iterable[bytes | None],
    tokenizer: Tokenizer,
    *,
    undecodable: str = "replace",
    where: Where = _numbered,
    progress: Callable[[int], None] = lambda documents: None,
) -> dict[str, int]:
    """Tokenises documents into `folder`, about a megabyte of text at a time, however long one is.

    Args:
        folder: where to write; made here.
        raws: the documents; None for one that could not be read.
        tokenizer: how to encode them.
        undecodable: see `Cleaner`.
        where: see `Cleaner`.
        progress: called now and then with the number of documents read.

    Returns:
        The counts: documents, bytes, tokens, empty, damaged, undecodable; and where there are any,
        of the bytes, those replaced (U+FFFD in place of what is not UTF-8) and those lost (of
        characters that the tokenizer cannot give back, see `lost_bytes`).

    Raises:
        InputError: no usable document.
    """
    folder.mkdir(parents=True)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    cleaner = Cleaner(undecodable, where)
    eot, begin = np.array([tokenizer.eot], dtype), np.array(tokenizer.begin, dtype)
    shared = tokenizer.begin == (tokenizer.eot,)  # the end of one text begins the next
    offsets, num_tokens, num_bytes, lost = array("q"), 0, 0, 0
    with open(folder / "tokens.bin", "wb") as file:
        for blocks in _batches(_blocks(cleaner.texts(raws))):
            leads = ["" if block.first else tokenizer.lead(block.text) for block in blocks]
            given = [lead + block.text for lead, block in zip(leads, blocks, strict=True)]
            encoded = tokenizer.encode_batch(given)
            for block, lead, text, ids in zip(blocks, leads, given, encoded, strict=True):
                if block.first:
                    if offsets and not shared:
                        num_tokens += len(eot)
                        file.write(eot.tobytes())
                    offsets.append(num_tokens)
                    num_tokens += len(begin)
                    file.write(begin.tobytes())
                if not tokenizer.exact:
                    lost += lost_bytes(text, tokenizer.decode(ids.tolist()))
                own = ids[len(tokenizer.encode(lead)) :] if lead else ids
                num_tokens += len(own)
                num_bytes += len(block.text.encode())
                file.write(own.astype(dtype).tobytes())
            progress(cleaner.seen)
        file.write(eot.tobytes())
    require(
        bool(offsets),
        f"No usable text among the {cleaner.seen} documents of the {folder.name} split"
        f" ({cleaner.empty} empty, {cleaner.damaged} damaged, {cleaner.undecodable} not UTF-8);"
        " give more text.",
    )
    counts = {
        "documents": len(offsets),
        "bytes": num_bytes,
        "tokens": num_tokens + 1,
        "empty": cleaner.empty,
        "damaged": cleaner.damaged,
        "undecodable": cleaner.undecodable,
        **({"replaced": cleaner.replaced} if cleaner.replaced else {}),
        **({"lost": lost} if lost else {}),
    }
    offsets.append(num_tokens)
    np.save(folder / "offsets.npy", np.asarray(offsets, np.int64))
    about = {"dtype": dtype.name, **counts, **({} if shared else {"begin": len(begin)})}
    (folder / "store.json").write_text(json.dumps(about))
    return counts


def open_store(folder: Path) -> TokenStore:
    """Maps what `write_store` wrote; nothing is read until it is used."""
    about = json.loads((folder / "store.json").read_text())
    try:
        offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{folder / 'offsets.npy'} holds no numbers: {error}.") from error
    return TokenStore(
        tokens=np.memmap(folder / "tokens.bin", np.dtype(about["dtype"]), "r"),
        offsets=offsets,
        num_bytes=about["bytes"] - about.get("lost", 0) - about.get("replaced", 0),
        begin=about.get("begin", 0),
    )


class _Block(NamedTuple):
    """A piece of a document; a tokenizer's memory goes with the length of what it is given."""

    text: str
    first: bool


def _blocks(texts: Iterable[str]) -> Iterator[_Block]:
    """The documents in pieces, each up to the last line end that leaves it short enough."""
    for text in texts:
        start = 0
        while len(text) - start > _BLOCK_CHARACTERS:
            end = text.rfind("\n", start, start + _BLOCK_CHARACTERS) + 1
            end = end if end > start else start + _BLOCK_CHARACTERS
            yield _Block(text[start:end], first=start == 0)
            start = end
        yield _Block(text[start:], first=start == 0)


def _batches(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    held, size = [], 0
    for block in blocks:
        held.append(block)
        size += len(block.text)
        if size >= _BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held
