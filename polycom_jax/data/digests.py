"""Checksums of a source's files: by these it is known again, wherever it lies.

They are those that a bucket keeps, so that a text is the same on a disk and in a bucket, and nobody
downloads it to find that out. They tell what was edited or damaged, and not what was forged.
"""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Literal

from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.data.files import Place
from polycom_jax.storage import Entry

Kind = Literal["crc32c", "sha256"]
"""Of files on a disk; SHA-256 is that of earlier versions, by which their runs are known."""

READ_BYTES = 2**32
"""Of files that have more bytes than this together, those that look as they did are not read again:
it would take longer than people wait for a start."""

_SHOWN = 16

_MEMO: Mapping[Kind, str] = {"crc32c": "source-crc32c.json", "sha256": "source-digests.json"}


def _crc32c(file: BufferedReader, size: int) -> str:
    import google_crc32c

    found = google_crc32c.Checksum()
    for _ in found.consume(file, 1 << 22):
        pass
    return _of_bucket(base64.b64encode(found.digest()).decode(), size)


def _sha256(file: BufferedReader, size: int) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


_DIGESTS: Mapping[Kind, Callable[[BufferedReader, int], str]] = {
    "crc32c": _crc32c,
    "sha256": _sha256,
}


def _of_bucket(checksum: str, size: int) -> str:
    return f"crc32c {checksum} {size}"


def shown(digest: str) -> str:
    """The beginning of a checksum, as people and a run's record see it."""
    return digest[:_SHOWN].strip()


EMPTY = frozenset({shown(hashlib.sha256(b"").hexdigest()), shown(_of_bucket("AAAAAA==", 0))})
"""What is shown of a file without content."""


def file_digest(path: Place, entry: Entry, kind: Kind = "crc32c") -> str:
    """CRC-32C and size, of a file in a bucket as they are kept there; or SHA-256 of one on a disk.

    Raises:
        InputError: it cannot be read.
    """
    if entry.checksum is not None:
        return _of_bucket(entry.checksum, entry.size)
    try:
        with open(path, "rb") as file:
            return _DIGESTS[kind](file, entry.size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def file_digests(
    paths: Sequence[Place],
    entries: Sequence[Entry],
    cache: Path | None = None,
    kind: Kind = "crc32c",
) -> list[str]:
    """`file_digest` of each; of much text, those that `cache` knows are not read again.

    Raises:
        InputError: a file cannot be read.
    """
    pairs = list(zip(paths, entries, strict=True))
    large = sum(entry.size for _, entry in pairs if entry.checksum is None) > READ_BYTES
    if cache is None or not large:
        return [file_digest(path, entry, kind) for path, entry in pairs]
    memo = cache / _MEMO[kind]
    known = _read(memo)
    found: dict[str, list[object]] = {}
    for path, entry in pairs:
        name, now = os.path.realpath(path), [entry.size, entry.generation]
        before = known.get(name, [None, None, ""])
        found[name] = before if before[:2] == now else [*now, file_digest(path, entry, kind)]
    if any(known.get(name) != one for name, one in found.items()):
        storage.write(memo, json.dumps(known | found).encode())
    return [str(found[os.path.realpath(path)][2]) for path in paths]


def _read(memo: Path) -> dict[str, list[object]]:
    try:
        return json.loads(memo.read_bytes())
    except (OSError, ValueError):  # There is none, and it can be made again.
        return {}
