"""Held-out documents that are in the training text, too, where each side has files of its own.

Of a mixture each text's are looked for in all that is trained on.

Beside a piece's tokens lie the hash and the length of each document, so that pieces which are taken
over for another held-out text can be compared with that one.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax.data.files import Place
from polycom_jax.data.heldout import content_hash
from polycom_jax.data.reader import Split

_THREADS = 32  # most of the time of reading from a bucket is waiting
_DOCUMENT = np.dtype([("hash", "<u8"), ("bytes", "<u8")])
_BLANK = content_hash(b"")
"""Of documents of white space alone, which are equal and yet no copies of each other."""


def listing_name(split: Split, piece: int) -> str:
    """The file of a piece's documents, within the folder."""
    return f"{split}/{piece:06}.documents"


def listed(text: str) -> bytes:
    """A document's entry; white space at its ends comes and goes with formats, and is left out."""
    raw = text.encode()
    return np.array((content_hash(raw.strip()), len(raw)), _DOCUMENT).tobytes()


def count_copies(folder: Place, pieces: int) -> dict[str, int] | None:
    """How many held-out documents, and bytes of them, are whole documents to train on, too.

    None: nobody knows, since an earlier version has prepared pieces of these.

    Raises:
        InputError: a listing is damaged.
    """
    found = count_among([(folder, pieces)])
    return None if found is None else found[0].size


class Copies(NamedTuple):
    """Held-out documents of a text that are trained on, too.

    Attributes:
        size: how many documents, and bytes of them.
        texts: those that train on them, by their places in the list.
    """

    size: dict[str, int]
    texts: list[int]


def count_among(texts: Sequence[tuple[Place, int]]) -> list[Copies] | None:
    """Of each text, given as folder and number of pieces, its copies in all that is trained on.

    None: nobody knows, since there are pieces whose documents are not listed.

    Raises:
        InputError: a listing is damaged.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        try:
            held = [
                np.concatenate(list(threads.map(partial(_read, folder, "heldout"), range(pieces))))
                for folder, pieces in texts
            ]
            held = [each[each["hash"] != _BLANK] for each in held]
            wanted = np.sort(np.concatenate(held)["hash"])
            found = [
                np.concatenate(list(threads.map(partial(_trained, folder, wanted), range(pieces))))
                for folder, pieces in texts
            ]
        except FileNotFoundError:
            return None
    every = [np.sort(each) for each in found]
    return [_copies_of(each, every) for each in held]


def _read(folder: Place, split: Split, piece: int) -> np.ndarray:
    place = folder / listing_name(split, piece)
    data = storage.read(place)
    require(
        len(data) % _DOCUMENT.itemsize == 0,
        f"{place} is damaged ({len(data)} bytes, of {_DOCUMENT.itemsize} a document); delete"
        f" {folder}, and the next start prepares it again.",
    )
    return np.frombuffer(data, _DOCUMENT)


def _trained(folder: Place, wanted: np.ndarray, piece: int) -> np.ndarray:
    hashes = _read(folder, "train", piece)["hash"]
    return hashes[_among(hashes, wanted)]


def _copies_of(held: np.ndarray, trained: Sequence[np.ndarray]) -> Copies:
    each = [_among(held["hash"], hashes) for hashes in trained]
    copies = held[np.any(each, axis=0)]
    size = {"documents": len(copies), "bytes": int(copies["bytes"].sum())}
    return Copies(size, [k for k, found in enumerate(each) if found.any()])


def _among(hashes: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which of the hashes are among others: of many pieces each takes a search in these alone."""
    if not len(ascending):
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(ascending, hashes)
    return ascending[np.minimum(places, len(ascending) - 1)] == hashes
