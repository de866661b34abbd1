"""Held-out documents that are in the training text, too, where each side has files of its own.

Beside a piece's tokens lie the hash and the length of each document, so that pieces which are taken
over for another held-out text can be compared with that one.
"""

from concurrent.futures import ThreadPoolExecutor

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

    def read(split: Split, piece: int) -> np.ndarray:
        place = folder / listing_name(split, piece)
        data = storage.read(place)
        require(
            len(data) % _DOCUMENT.itemsize == 0,
            f"{place} is damaged ({len(data)} bytes, of {_DOCUMENT.itemsize} a document); delete"
            f" {folder}, and the next start prepares it again.",
        )
        return np.frombuffer(data, _DOCUMENT)

    def trained(piece: int) -> np.ndarray:
        hashes = read("train", piece)["hash"]
        return hashes[_among(hashes, wanted)]

    numbers = range(pieces)
    with ThreadPoolExecutor(_THREADS) as threads:
        try:
            held = np.concatenate(list(threads.map(lambda piece: read("heldout", piece), numbers)))
            held = held[held["hash"] != _BLANK]
            wanted = np.sort(held["hash"])
            found = np.concatenate(list(threads.map(trained, numbers)))
        except FileNotFoundError:
            return None
    copies = held[_among(held["hash"], np.sort(found))]
    return {"documents": len(copies), "bytes": int(copies["bytes"].sum())}


def _among(hashes: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which of the hashes are among others: of many pieces each takes a search in these alone."""
    if not len(ascending):
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(ascending, hashes)
    return ascending[np.minimum(places, len(ascending) - 1)] == hashes
