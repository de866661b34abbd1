"""The cache folder, and the lock that lets one process of a machine make what lies in it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polycom_jax import storage
from polycom_jax._errors import InputError

Report = Callable[[str], None]
"""Takes one line on what is being done."""


def cache_folder(given: str | None) -> Any:
    """`given`, else $POLYCOM_CACHE, else the platform's user cache folder; made if need be.

    It may lie in a bucket, given as gs://BUCKET/PATH; else it is a `pathlib.Path`.

    Raises:
        InputError: it cannot be made or written to.
    """
    name = given or os.environ.get("POLYCOM_CACHE")
    if name and "://" in name:
        place = storage.place(name)
        storage.require_reachable(place)
        return place
    return _local(name)


def local_cache_folder(given: str | None) -> Path:
    """As `cache_folder`, for what must lie on a disk: in the place of a bucket, the platform's."""
    name = given or os.environ.get("POLYCOM_CACHE")
    return _local(None if name and storage.is_remote(name) else name)


def _local(name: str | None) -> Path:
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
