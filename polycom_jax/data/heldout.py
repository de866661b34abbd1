"""Which documents are held out: those whose content hash is below a bound."""

import hashlib
from collections.abc import Iterable

from polycom_jax._errors import InputError, require

HELDOUT_SHARE = 0.03
"""Share of the documents that is held out, by hash of their content: copies stay on one side."""

VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "heldout")
TEST_SPLITS = ("test", "testing", "eval", "evaluation")
HELDOUT_SPLITS = VALIDATION_SPLITS + TEST_SPLITS
"""What splits to evaluate on are called; where none is named, the first that there is is taken."""

BOUND = int(HELDOUT_SHARE * 2**64)
"""The bound of any corpus that has documents on both sides of it, as all but tiny ones have."""

PIECES, SMALLEST_PIECE = 128, 1024
"""Little plain text is cut into about so many documents, or into ones of so many bytes: of a few
large documents, one is a large part of the text to hold out."""


def content_hash(raw: bytes) -> int:
    """64 bits that depend on the content alone.

    They are personalised: a corpus whose publisher held documents out by their plain SHA-256 has
    none left in the lowest share of that hash.
    """
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8, person=b"heldout").digest(), "big")


_EMPTY = content_hash(b"")


class SingleDocumentError(InputError):
    """A text of one document: it cannot be split into a part to train on and one held out."""


def heldout_below(hashes: Iterable[int], source: str) -> int:
    """The bound under which a document's `content_hash` holds it out.

    It is `BOUND`, moved just so far that both sides have a document; empty ones count for neither.
    No more hashes are read than it takes to know it: of a large corpus, a few dozen.

    Raises:
        InputError: no text.
        SingleDocumentError: no two different documents.
    """
    low, high = 2**64, -1
    for one in hashes:
        if one != _EMPTY:
            low, high = min(low, one), max(high, one)
            if low < BOUND <= high:
                return BOUND
    require(high >= 0, f"{source}: no text in it; the corpus is empty.")
    if low >= high:
        raise SingleDocumentError(
            f"{source}: a single document, so nothing can be held out; give more text, or other"
            " files by data.heldout, or lower data.document_bytes, the size that a .txt file is cut"
            " at (a .jsonl file has one a line)."
        )
    return min(max(BOUND, low + 1), high)


def is_heldout(raw: bytes | None, bound: int) -> bool:
    """Whether a document is held out; None, one that could not be read, is counted in training."""
    return raw is not None and content_hash(raw) < bound


def some_text(raws: Iterable[bytes | None], source: str) -> None:
    """Raises `InputError`, naming `source`, where all documents are empty."""
    require(any(raws), f"{source}: no text in it; the corpus is empty.")


def document_bytes(given: int, default: int, sizes: Iterable[int]) -> int:
    """The size that plain files of `sizes` bytes are cut at: `given`, or less of the default.

    Only where a part of these files is to be held out, and few documents would come of them.
    """
    total = sum(sizes)
    if given != default or not total:
        return given
    return min(default, max(SMALLEST_PIECE, total // PIECES))
