"""Files, on a disk that may be far away: what it refuses for a moment is asked for again, and
checksums tell whether what was written is there still."""

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

Digests = Mapping[str, tuple[int, str]]
"""Path within a folder -> number of bytes, SHA-256."""

_THREADS = 4  # hashlib and reads release the interpreter

WAITS_S = (0.1, 0.4, 1.6, 6.4)
"""Seconds before each further try."""

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "EIO", "ENFILE", "ENOLCK", "ENOTCONN", "EREMOTEIO"),
        *("ESTALE", "ETIMEDOUT", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN"),
        *("EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ESHUTDOWN", "ENOLINK"),
        *("EPROTO", "ECOMM", "EDEADLK", "EPIPE"),
    )
    if hasattr(errno, name)
)
"""What the system says of a disk that may answer in a moment."""


NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
"""What a file system without links says, such as a mounted bucket."""

FILLED_S = 2.0
"""A new file that is empty for so long is of a process that was killed."""

_OTHERS_S = (0.001, 0.01, 0.1)
"""Seconds before each further try where another process makes or removes the same folders."""


class Exhausted(OSError):
    """An error of the moment that has lasted through all tries already."""


def passes(error: Exception) -> bool:
    """Is this an error of the moment, which says nothing of the file itself?"""
    if isinstance(error, Exhausted):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return isinstance(error, TimeoutError | ConnectionError | InterruptedError | BlockingIOError)


def retried(
    call: Callable[[], T],
    *,
    passing: Callable[[Exception], bool] = passes,
    waits: Sequence[float] | None = None,
) -> T:
    """What `call` returns, tried again a few times, ever more slowly, while its error may pass.

    Args:
        call: does the same however often it is called.
        passing: which errors are worth another try.
        waits: seconds before each further try; None: `WAITS_S`.

    Raises:
        Exception: that of the last try, or the first that does not pass.
    """
    for wait in WAITS_S if waits is None else waits:
        try:
            return call()
        except Exception as error:
            if not passing(error):
                raise
        time.sleep(wait)
    return call()


def in_made(folder: Path, call: Callable[[], T]) -> T:
    """What `call` returns, for which `folder` is made, and those above it, where it is not there.

    Whoever only tries whether a folder can be written takes new ones away again, and may do so
    between the two.

    Raises:
        OSError: it cannot be made, or what `call` raises.
    """

    def once() -> T:
        folder.mkdir(parents=True, exist_ok=True)
        return call()

    return retried(once, passing=_is_others, waits=_OTHERS_S)


def remove_folder(folder: os.PathLike[str]) -> None:
    """Removes a folder and all in it; others may do so at the same time.

    Raises:
        OSError: something cannot be removed.
    """

    def unless_gone(call: object, path: str, raised: Any) -> None:
        error = raised[1] if isinstance(raised, tuple) else raised
        if not isinstance(error, FileNotFoundError):
            raise error

    def once() -> None:
        if not os.path.lexists(folder):
            return
        if sys.version_info >= (3, 12):
            shutil.rmtree(folder, onexc=unless_gone)
        else:
            shutil.rmtree(folder, onerror=unless_gone)

    retried(once, passing=_is_others, waits=_OTHERS_S)


def _is_others(error: Exception) -> bool:
    """Does it come of another process that makes or removes the same folders?"""
    if isinstance(error, FileNotFoundError | FileExistsError):
        return True
    return isinstance(error, OSError) and error.errno == errno.ENOTEMPTY


def give_name(temporary: Path, place: os.PathLike[str]) -> None:
    """Gives a whole file a name; on a file system without links an empty file has it for a moment.

    Raises:
        FileExistsError: another file has it.
        OSError: the name cannot be given.
    """
    try:
        os.link(temporary, place)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _take(place)
        os.replace(temporary, place)


def _take(place: os.PathLike[str]) -> None:
    """Makes an empty file; raises `FileExistsError` where there is one with something in it."""
    last = time.monotonic() + FILLED_S
    while True:
        try:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            if (status := status_of(place)) is not None and status.st_size > 0:
                raise
            if time.monotonic() < last:
                time.sleep(_OTHERS_S[-1])
                continue
        return


def status_of(path: os.PathLike[str]) -> os.stat_result | None:
    """What the system says of a file that was listed; None where it is gone since.

    Another process may rename or delete a file between the two.

    Raises:
        OSError: the system does not say; so with a link to what is not there.
    """
    try:
        return os.stat(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
        return None


def file_names(folder: Path) -> list[str]:
    """The paths of all files under `folder`, sorted.

    Those in a folder that another process takes away meanwhile are left out.

    Raises:
        OSError: a folder cannot be listed.
    """

    def stop(error: OSError) -> None:
        gone = isinstance(error, FileNotFoundError) and not os.path.lexists(error.filename)
        if not gone or Path(error.filename) == folder:
            raise error

    walk = os.walk(folder, onerror=stop)
    return sorted(
        Path(top, name).relative_to(folder).as_posix() for top, _, own in walk for name in own
    )


def first_damage(folder: Path, files: Digests) -> str:
    """What is wrong with the first file that is not as it was written; "" where all are.

    Args:
        folder: where they lie.
        files: what was written.

    Raises:
        OSError: a file cannot be read, though tried again, which proves nothing of what is in it.
    """
    left = sorted(files)

    def problem(name: str) -> str | OSError:
        path, (size, digest) = folder / name, files[name]
        try:
            found = _digest(path)
        except (FileNotFoundError, NotADirectoryError):
            return "is missing"
        except IsADirectoryError:
            return "is a folder"
        except OSError as error:
            error.filename = error.filename or str(path)  # reading names none
            return error
        if found[0] != size:
            return f"has {found[0]} bytes of {size}"
        return "" if found[1] == digest else "has other bytes than were written"

    def look() -> str:
        nonlocal left
        with ThreadPoolExecutor(_THREADS) as threads:
            found = dict(zip(left, threads.map(problem, left), strict=True))
        for name, wrong in found.items():
            if wrong and not isinstance(wrong, OSError):
                return f"{name} {wrong}"
        refused = {name: wrong for name, wrong in found.items() if isinstance(wrong, OSError)}
        if refused:
            left = list(refused)
            raise min(refused.values(), key=passes)  # one that no further try would mend, first
        return ""

    return retried(look)


def _digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
