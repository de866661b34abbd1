"""Files of text, by path or glob: which they are, and what is in them."""

import errno
import glob
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polycom_jax._errors import InputError, require

PACKED = (".gz", ".xz", ".zst")
PACKABLE = (".txt", ".jsonl")
KINDS = (*PACKABLE, ".parquet", ".arrow")

EMPTY = hashlib.sha256(b"").hexdigest()[:16]
"""The beginning of the checksum of a file without content."""


def text_kind(path: str | Path) -> str | None:
    """One of `KINDS`, text also seen through `PACKED`; None for anything else."""
    path = Path(os.fspath(path).lower())
    if path.suffix not in PACKED:
        return path.suffix if path.suffix in KINDS else None
    suffix = Path(path.stem).suffix
    return suffix if suffix in PACKABLE else None


def printable(path: str | Path) -> str:
    """A path as text: bytes of a name that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def text_files(pattern: str, field: str = "data.source") -> tuple[Path, ...]:
    """The files that a path or glob (`**` too) names, sorted; messages say which `field` it was.

    Of several names of one file, by links, the first is taken; folders that a glob matches are
    passed over.

    Raises:
        InputError: no such file, a link to none, something that is no file, or a file that is
            of none of `KINDS`.
    """
    return one_each(matched_files(pattern, field))


def matched_files(pattern: str, field: str = "data.source") -> tuple[Path, ...]:
    """As `text_files`, with all names of a file."""
    expanded = os.path.expanduser(pattern)
    exact = os.path.lexists(expanded)
    names = [expanded] if exact else glob.glob(expanded, recursive=True)
    require(
        not os.path.isdir(expanded),
        f"{field}={pattern!r} is a folder; name files, with a glob for instance:"
        f" '{pattern.rstrip('/')}/**/*.txt'.",
    )
    paths = tuple(path for path in map(Path, sorted(names)) if _is_file(path))
    hint = " In a glob '[' begins a set of signs; a bracket itself is written '[[]'."
    require(
        bool(paths),
        f"{field}={pattern!r}: no such file, and no file matches it as a glob."
        + (hint if "[" in pattern else ""),
    )
    for path in paths:
        require(
            text_kind(path) is not None,
            f"{path} is neither .txt nor .jsonl (nor one of these with .gz, .xz or .zst), and no"
            " .parquet or .arrow; rename it to what it holds: plain text, one JSON object a line,"
            " or a table with a column of text.",
        )
    return paths


def _is_file(path: Path) -> bool:
    """False for a folder; `InputError` for what is neither."""
    try:  # `**` goes round a folder's link to one above it until the system sees too many links.
        mode = os.stat(os.path.join(os.path.realpath(path.parent), path.name)).st_mode
    except OSError as error:
        broken = path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
        why = f"links to {os.readlink(path)}, which is not there" if broken else "cannot be read"
        raise InputError(
            f"{path} {why} ({error.strerror}); mend it, or take it away from the text."
        ) from error
    require(
        stat.S_ISREG(mode) or stat.S_ISDIR(mode),
        f"{path} is a pipe or a device, and text is read more than once; write it to a file.",
    )
    return stat.S_ISREG(mode)


def one_each(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The first name of each file."""
    found: dict[Any, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        about = os.stat(real)
        found.setdefault((about.st_dev, about.st_ino) if about.st_nlink > 1 else real, path)
    return tuple(found.values())


def file_digest(path: Path) -> str:
    """SHA-256 of a file as it lies on disk.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and the time of its last change in nanoseconds: a change moves one of them.

    Raises:
        InputError: it cannot be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return found.st_size, found.st_mtime_ns
