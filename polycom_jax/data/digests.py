"""Checksums of a source's files: by these it is known again, wherever it lies."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.data.files import Place
from polycom_jax.storage import Entry

EMPTY = frozenset({hashlib.sha256(b"").hexdigest()[:16], "crc32c AAAAAA== "})
"""The beginning of the checksum of a file without content, on a disk and in a bucket."""

READ_BYTES = 2**32
"""Of files that have more bytes than this together, those that look as they did are not read again:
it would take longer than people wait for a start."""

_MEMO = "source-digests.json"


def file_digest(path: Place, entry: Entry) -> str:
    """SHA-256 of a file on a disk; in a bucket, the checksum that is kept there.

    Raises:
        InputError: it cannot be read.
    """
    if entry.checksum is not None:
        return f"crc32c {entry.checksum} {entry.size}"
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def file_digests(
    paths: Sequence[Place], entries: Sequence[Entry], cache: Path | None = None
) -> list[str]:
    """`file_digest` of each; of much text, those that `cache` knows are not read again.

    Raises:
        InputError: a file cannot be read.
    """
    pairs = list(zip(paths, entries, strict=True))
    large = sum(entry.size for _, entry in pairs if entry.checksum is None) > READ_BYTES
    if cache is None or not large:
        return [file_digest(path, entry) for path, entry in pairs]
    known = _read(cache)
    found: dict[str, list[object]] = {}
    for path, entry in pairs:
        name, now = os.path.realpath(path), [entry.size, entry.generation]
        before = known.get(name, [None, None, ""])
        found[name] = before if before[:2] == now else [*now, file_digest(path, entry)]
    if any(known.get(name) != one for name, one in found.items()):
        storage.write(cache / _MEMO, json.dumps(known | found).encode())
    return [str(found[os.path.realpath(path)][2]) for path in paths]


def _read(cache: Path) -> dict[str, list[object]]:
    try:
        return json.loads((cache / _MEMO).read_bytes())
    except (OSError, ValueError):  # There is none, and it can be made again.
        return {}
