"""The cache folder: what lies in it was made once, under a lock, and appeared whole."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polycom_jax._errors import InputError
from polycom_jax._files import digests, file_names, first_damage, retried

Report = Callable[[str], None]
"""Takes one line on what is being done."""


def cache_folder(given: str | None) -> Path:
    """`given`, else $POLYCOM_CACHE, else the platform's user cache folder; made if need be.

    Raises:
        InputError: it cannot be made or written to.
    """
    name = given or os.environ.get("POLYCOM_CACHE")
    if not name:
        import platformdirs

        name = platformdirs.user_cache_dir("polycom_jax", appauthor=False)
    folder = Path(name).expanduser().absolute()
    try:
        name.encode()  # TFDS takes no other names.
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except (OSError, ValueError):
        writable = False
    if not writable:
        raise InputError(
            f"Cache folder {str(folder)!r} cannot be written, or its name is no UTF-8; name another"
            " with data.cache_dir or the environment variable POLYCOM_CACHE."
        )
    return folder


def digest(*parts: Any) -> str:
    """A short name for JSON-able values: equal values, equal name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def locked(path: Path, *, timeout_s: float, report: Report) -> Iterator[None]:
    """Holds the lock file `path`; the operating system frees it when a process dies.

    Raises:
        InputError: another process holds it for longer than `timeout_s` seconds.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report(f"Waiting for another process that prepares the same data ({path})")
            lock.acquire(timeout=timeout_s)
    except filelock.Timeout as error:
        raise InputError(
            f"Another process has held {path} for {timeout_s:g} s; wait for it to end, or raise"
            " data.lock_timeout_s."
        ) from error
    try:
        yield
    finally:
        lock.release()


SEAL = "checksums.json"
"""File in a prepared folder: bytes and SHA-256 of all others."""

READ_BYTES = 2**32
"""A prepared folder larger than this is checked by the sizes of its files: to read it all would
take longer than people wait for a start."""


def seal(folder: Path) -> None:
    """Writes down what is in `folder`, for `check_seal`."""
    (folder / SEAL).write_text(json.dumps(digests(folder, file_names(folder)), indent=1))


def check_seal(folder: Path) -> None:
    """Raises `InputError` unless the files of `folder` are as they were sealed.

    Raises:
        OSError: they cannot be read; nothing says that they are damaged.
    """
    try:
        files = {name: (size, digest) for name, (size, digest) in _read_seal(folder).items()}
        contents = sum(size for size, _ in files.values()) <= READ_BYTES
        damage = first_damage(folder, files, contents=contents)
    except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
        damage = f"{SEAL} cannot be read: {error}"
    if damage:
        raise InputError(
            f"The prepared data in {folder} are damaged ({damage}); delete that folder, and the"
            " next start prepares them again."
        )


def _read_seal(folder: Path) -> dict[str, Any]:
    return json.loads(retried((folder / SEAL).read_text))


def build_once(
    folder: Path, build: Callable[[Path], None], *, timeout_s: float, report: Report
) -> Path:
    """Returns `folder`, made by `build(temporary folder)` and a rename unless it is there already.

    What a killed process left behind is removed by the next one that builds the same folder.
    """
    if folder.is_dir():
        return folder
    with locked(folder.parent / f"{folder.name}.lock", timeout_s=timeout_s, report=report):
        if folder.is_dir():
            return folder
        for left in folder.parent.glob(f"{folder.name}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = folder.parent / f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        try:
            build(temporary)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
