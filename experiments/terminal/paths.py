"""Paths that programs are given: `~` in them, and whether what they are for can be written.

Of places in buckets, `polycom_jax.storage` says whether they can be used.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._fields import PATH, PLACE
from polycom_jax._files import in_made


def expanded(flag: str, word: str, *, remote: bool = False) -> str:
    """A path that a program was given, `~` at its beginning being somebody's home folder.

    A shell does that for `--workdir ~/x`, and not for `--workdir=~/x` nor within a file. Every path
    goes through here.

    Args:
        flag: that was given it.
        word: the path.
        remote: it may be in a bucket.

    Raises:
        InputError: the home folder of an unknown user, or a place that the flag does not take.
    """
    try:
        storage.named(word)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error
    require(
        remote or not storage.is_remote(word),
        f"{flag}={word!r}: this flag takes a local path; mount the bucket (gcsfuse) and name the"
        " path there.",
    )
    if not word.startswith("~"):
        return word
    try:
        path = os.path.expanduser(word)
    except ValueError:  # NUL, or what is no text
        path = word
    require(
        not path.startswith("~"),
        f"{flag}={word!r}: nobody's home folder is {word.partition('/')[0]!r}; for a name that"
        " begins with ~, write ./~.",
    )
    return path


def is_path(hint: Any) -> bool:
    """Whether the marker of `PathText` is anywhere in an annotation."""
    return PATH in getattr(hint, "__metadata__", ()) or any(map(is_path, get_args(hint)))


def is_place(hint: Any) -> bool:
    """Whether the marker of `PlaceText` is anywhere in an annotation."""
    return PLACE in getattr(hint, "__metadata__", ()) or any(map(is_place, get_args(hint)))


def try_folder(flag: str, folder: os.PathLike[str]) -> None:
    """Raises `InputError` unless files can be written to `folder`; leaves no trace.

    A program asks before its work, which may take hours. Folders that are missing it may make. Of a
    bucket it is asked whether it can be reached.
    """
    if storage.is_remote(folder):
        storage.require_reachable(folder)
        return
    with _refused(flag, Path(folder)):
        _try(Path(folder))


def try_file(flag: str, path: Path) -> None:
    """Raises `InputError` unless a file can be written to `path`; leaves no trace."""
    with _refused(flag, path):
        require(not path.is_dir(), f"{flag} {str(path)!r} is a folder, and a file is wanted.")
        if path.is_file():
            path.open("ab").close()
        if path.is_file() or not path.exists():  # else a device, or a pipe
            _try(path.parent)


def _try(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, and a folder is wanted")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        in_made(folder, lambda: tempfile.TemporaryFile(dir=folder).close())
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def _refused(flag: str, path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # the latter of NUL in a name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {str(path)!r} cannot be written: {why}.") from error


@contextlib.contextmanager
def naming(path: os.PathLike[str]) -> Iterator[None]:
    """In the block, an error of the system that names no file names `path`: a full disk does so."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
