"""Files of text, by path or glob: which they are, and what is in them."""

import errno
import fnmatch
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.storage import Entry

Place = Any
"""A `pathlib.Path` on a disk; in a bucket, what `storage.place` gives."""

PACKED = (".gz", ".xz", ".zst")
PACKABLE = (".txt", ".jsonl")
KINDS = (*PACKABLE, ".parquet", ".arrow")


def text_kind(path: str | os.PathLike[str]) -> str | None:
    """One of `KINDS`, text also seen through `PACKED`; None for anything else."""
    path = Path(os.fspath(path).lower())
    if path.suffix not in PACKED:
        return path.suffix if path.suffix in KINDS else None
    suffix = Path(path.stem).suffix
    return suffix if suffix in PACKABLE else None


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text: bytes of a name that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def matched_files(pattern: str, field: str = "data.source") -> tuple[Place, ...]:
    """The files that a path or glob (`**` too) names, sorted; messages say which `field` it was.

    A file that has several names, by links, is there by all that match; folders that a glob matches
    are passed over.

    Raises:
        InputError: no such file, a link to none, something that is no file, or a file that is
            of none of `KINDS`.
    """
    paths = _in_bucket(pattern) if storage.is_remote(pattern) else _on_disk(pattern, field)
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


def _on_disk(pattern: str, field: str) -> tuple[Place, ...]:
    expanded = os.path.expanduser(pattern)
    exact = os.path.lexists(expanded)
    names = [expanded] if exact else glob.glob(expanded, recursive=True)
    require(
        not os.path.isdir(expanded),
        f"{field}={pattern!r} is a folder; name files, with a glob for instance:"
        f" '{pattern.rstrip('/')}/**/*.txt'.",
    )
    return tuple(path for path in map(Path, sorted(names)) if _is_file(path))


def _in_bucket(pattern: str) -> tuple[Place, ...]:
    """The objects that a name or glob means; `**` goes through any number of folders."""
    storage.require_reachable(storage.place(pattern))
    fixed = pattern[: re.search(r"[*?[]|$", pattern).start()]  # pyright: ignore[reportOptionalMemberAccess]
    if fixed == pattern:
        return (storage.place(pattern),) if storage.is_file(storage.place(pattern)) else ()
    folder = storage.place(fixed.rpartition("/")[0])
    wanted = _glob_rule(pattern[len(os.fspath(folder)) + 1 :])
    return tuple(folder / name for name in sorted(storage.entries(folder)) if wanted(name))


def _glob_rule(pattern: str) -> Callable[[str], bool]:
    """Whether a name within a folder matches, as on a disk.

    A star does not go past a slash, nor mean a name that begins with a dot.
    """
    parts = pattern.split("/")

    def matches(names: list[str], parts: list[str]) -> bool:
        if not parts or not names:
            return not names and all(part == "**" for part in parts)
        hidden = names[0].startswith(".") and not parts[0].startswith(".")
        if parts[0] == "**":
            return matches(names, parts[1:]) or (not hidden and matches(names[1:], parts))
        fits = not hidden and fnmatch.fnmatchcase(names[0], parts[0])
        return fits and matches(names[1:], parts[1:])

    return lambda name: matches(name.split("/"), parts)


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


def one_each(paths: Iterable[Place]) -> tuple[Place, ...]:
    """The first name of each file."""
    found: dict[Any, Place] = {}
    for path in paths:
        if storage.is_remote(path):
            found[os.fspath(path)] = path
            continue
        real = os.path.realpath(path)
        about = os.stat(real)
        found.setdefault((about.st_dev, about.st_ino) if about.st_nlink > 1 else real, path)
    return tuple(found.values())


def looked_at(paths: Iterable[Place]) -> list[Entry]:
    """What tells whether a file has changed: its size, checksum in a bucket, and generation.

    Raises:
        InputError: one cannot be looked at.
    """
    listed: dict[str, dict[str, Entry]] = {}  # a bucket is asked once for each folder
    found = []
    for path in paths:
        try:
            if storage.is_remote(path):
                folder = os.fspath(path.parent)
                entries = listed.get(folder) or listed.setdefault(folder, storage.entries(folder))
                found.append(entries[path.name])
            else:
                about = os.stat(path)
                found.append(Entry(about.st_size, None, about.st_mtime_ns))
        except (OSError, KeyError) as error:
            why = getattr(error, "strerror", None) or "it is gone"
            raise InputError(f"{path} cannot be read: {why}.") from error
    return found
