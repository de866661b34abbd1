"""Checksums of a folder's files: what was written, and whether it is there still."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Digests = Mapping[str, tuple[int, str]]
"""Path within a folder -> number of bytes, SHA-256."""

_THREADS = 4  # hashlib and reads release the interpreter


def file_names(folder: Path, without: Iterable[str] = ()) -> list[str]:
    """The paths of all files under `folder`, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(set(found) - set(without))


def digests(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of these files.

    Raises:
        OSError: one cannot be read.
    """
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda name: _digest(folder / name), names)
        return dict(zip(names, found, strict=True))


def first_damage(folder: Path, files: Digests, *, contents: bool = True) -> str:
    """What is wrong with the first file that is not as it was written; "" where all are.

    Args:
        folder: where they lie.
        files: what `digests` gave.
        contents: read them; else only their sizes are looked at.
    """

    def problem(name: str) -> str:
        path, (size, digest) = folder / name, files[name]
        try:
            found = _digest(path) if contents else (path.stat().st_size, digest)
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        if found[0] != size:
            return f"has {found[0]} bytes of {size}"
        return "" if found[1] == digest else "has other bytes than were written"

    names = sorted(files)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = zip(names, threads.map(problem, names), strict=True)
        return next((f"{name} {wrong}" for name, wrong in found if wrong), "")


def _digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
