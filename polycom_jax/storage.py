"""Places, on a disk or in a bucket: written whole, read by ranges, listed with their checksums.

A place is an `etils.epath.Path`. A bucket has neither folders nor renames: a file there is an
object that one request puts whole, and a folder is the names that begin alike. What its server
refuses is raised as the system's own errors, so callers need not know which of the two it was.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from polycom_jax import _buckets
from polycom_jax._buckets import EMULATOR as EMULATOR
from polycom_jax._buckets import Entry as Entry
from polycom_jax._errors import require
from polycom_jax._files import (
    NO_LINKS,
    file_names,
    give_name,
    in_made,
    remove_folder,
    status_of,
)
from polycom_jax._lease import LOST_S as LOST_S
from polycom_jax._lease import Held as Held
from polycom_jax._lease import Lease as Lease
from polycom_jax._lease import Lost as Lost

Place = Path | epath.Path
"""What names a place to a function: of the two, only the latter can be in a bucket."""

REACH_S = 30.0
"""How long `require_reachable` takes at most."""

_reached = set[tuple[str, str | None]]()

_SUPPORTED = (
    "a place is a local path or gs://BUCKET/PATH; mount what another store holds (gcsfuse,"
    " mountpoint-s3, rclone mount) and name its local path"
)


def named(name: str | os.PathLike[str]) -> epath.Path:
    """The place of a name, as it is: a local one stays relative, and `~` a letter.

    Raises:
        InputError: it is neither local nor `gs://BUCKET/...`.
    """
    text = os.fspath(name)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|gs:", text)
    if scheme is None:
        return epath.Path(text)
    require(scheme[1] == "gs", f"{text!r} is not supported: {_SUPPORTED}.")
    bucket, _, rest = text.removeprefix("gs://").partition("/")
    require(bool(bucket), f"{text!r} names no bucket: {_SUPPORTED}.")
    require(".." not in rest.split("/"), f"{text!r}: names in a bucket have no '..'.")
    _buckets.prepare()
    return epath.Path(text)


def absolute(place: os.PathLike[str]) -> epath.Path:
    """The same place, whatever the working folder becomes."""
    return epath.Path(place if is_remote(place) else Path(place).absolute())


def place(name: str | os.PathLike[str]) -> epath.Path:
    """The place that a name means: `~` stands for a home folder, and a local one is made absolute.

    Raises:
        InputError: it is neither local nor `gs://BUCKET/...`.
    """
    return absolute(named(name if is_remote(name) else os.path.expanduser(name)))


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether it lies in a bucket."""
    return os.fspath(place).startswith("gs://")


def require_reachable(place: os.PathLike[str]) -> None:
    """Raises `InputError` where a bucket cannot be used, with what is missing; local ones can.

    It takes no longer than `REACH_S`; of a bucket that was reached, it asks no more.
    """
    key = (os.fspath(place).split("/")[2] if is_remote(place) else "", _buckets.server())
    if not key[0] or key in _reached:
        return
    found = list[Exception | None]()

    def look() -> None:
        try:
            found.append(_buckets.why_not(os.fspath(place)))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=look, daemon=True)  # to find a server's name may hang
    thread.start()
    thread.join(REACH_S)
    require(bool(found), f"{place} cannot be reached: no answer for {REACH_S:g} s.")
    if found[0] is not None:
        raise found[0]
    _reached.add(key)


def write(place: os.PathLike[str], data: bytes) -> None:
    """Puts a file there, whole or not at all, instead of what was there; it lasts on return.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(place):
        _buckets.put(os.fspath(place), data)
        return
    with _beside(place, data) as temporary:
        os.replace(temporary, place)
        _sync(temporary.parent)


def create(place: os.PathLike[str], data: bytes) -> bool:
    """Puts a file there, whole, unless there is one; returns whether this call has made it.

    On a disk without links an empty file that stays so counts as none.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(place):
        return _buckets.put(os.fspath(place), data, 0) is not None
    with _beside(place, data) as temporary:
        try:
            give_name(temporary, place)
        except FileExistsError:
            return False
        _sync(temporary.parent)
    return True


def read(place: os.PathLike[str], start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file from `start`, `size` of them or all; fewer where it ends before.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    if is_remote(place):
        return _buckets.get(os.fspath(place), start, size)[0]
    with open(place, "rb") as file:
        if start:  # what is no file of a disk, a pipe say, can be read all the same
            file.seek(start)
        return file.read(-1 if size is None else size)


def copy(source: os.PathLike[str], place: os.PathLike[str]) -> None:
    """Puts a file's bytes at another place of the same disk or bucket, whole.

    They are not sent through this process. On a disk both names share them where it can do that:
    neither file may be written in place.

    Raises:
        OSError: there is no such file, or it cannot be written.
    """
    if is_remote(place):
        _buckets.copy(os.fspath(source), os.fspath(place))
        return
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in {*NO_LINKS, errno.EXDEV}:
                raise
            shutil.copyfile(source, temporary)
            _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # of two names of one file, none is replaced


def read_with_generation(place: os.PathLike[str]) -> tuple[bytes, int]:
    """The bytes of an object in a bucket, and the generation that they are of.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    require(is_remote(place), f"{place}: local files have no generations to read by.")
    return _buckets.get(os.fspath(place))


def entries(folder: os.PathLike[str]) -> dict[str, Entry]:
    """Every file below a folder, by its path within it; none where there is no folder.

    A file that another process takes away meanwhile is left out.

    Raises:
        OSError: it cannot be listed.
    """
    if is_remote(folder):
        return _buckets.listed(os.fspath(folder))
    try:
        names = file_names(Path(folder))
    except (FileNotFoundError, NotADirectoryError):  # the latter where one above it is a file
        if os.path.lexists(folder):
            raise
        return {}
    found = ((name, status_of(Path(folder, name))) for name in names)
    return {name: _local_entry(status) for name, status in found if status is not None}


def folders(folder: os.PathLike[str]) -> list[str]:
    """The names of the folders right below one, sorted; none where there is no folder.

    Raises:
        OSError: it cannot be listed.
    """
    if is_remote(folder):
        return _buckets.folders(os.fspath(folder))
    try:
        with os.scandir(folder) as found:
            return sorted(one.name for one in found if one.is_dir())
    except FileNotFoundError:
        return []


def is_file(place: os.PathLike[str]) -> bool:
    """Whether a file is there.

    Raises:
        OSError: a bucket cannot be asked.
    """
    return _buckets.is_object(os.fspath(place)) if is_remote(place) else os.path.isfile(place)


def is_made(place: os.PathLike[str]) -> bool:
    """Whether `create` has put a file there: on a disk without links it may be empty at first.

    Raises:
        OSError: a bucket cannot be asked.
    """
    return is_file(place) and (is_remote(place) or os.path.getsize(place) > 0)


def is_folder(place: os.PathLike[str]) -> bool:
    """Whether a folder is there; in a bucket, whether it holds anything.

    Raises:
        OSError: a bucket cannot be asked.
    """
    return _buckets.holds_any(os.fspath(place)) if is_remote(place) else os.path.isdir(place)


def remove(place: os.PathLike[str]) -> None:
    """Removes a file; there need be none.

    Raises:
        OSError: it cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        if is_remote(place):
            _buckets.remove(os.fspath(place))
        else:
            os.unlink(place)


def remove_tree(folder: os.PathLike[str]) -> None:
    """Removes a folder and all in it; there need be none, and others may remove it, too.

    Raises:
        OSError: something cannot be removed.
    """
    if is_remote(folder):
        _buckets.remove_all(os.fspath(folder))
    else:
        remove_folder(folder)


def _local_entry(status: os.stat_result) -> Entry:
    return Entry(status.st_size, None, status.st_mtime_ns)


@contextlib.contextmanager
def _beside(place: os.PathLike[str], data: bytes) -> Iterator[Path]:
    """A file beside `place` with these bytes, on the disk; gone at the end of the block.

    Opened as any other file is, so that the umask says who may read it.
    """
    path = Path(place)
    temporary = temporary_name(path)
    file = in_made(path.parent, lambda: temporary.open("xb"))
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names none
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A name beside a local file that no other process gives, for what will replace it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers have left in a local folder; a live one takes no hour a file."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another's, or gone meanwhile
            left = time.time() - path.stat().st_mtime > 3600
            if left and re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name):
                path.unlink()


def _sync(path: Path) -> None:
    """Makes a file's bytes last, or in a folder the names that were changed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
