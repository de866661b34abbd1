"""Objects in a bucket of Google Cloud Storage, as `polycom_jax.storage` needs them.

What the server refuses is raised as the system's own errors, after what may pass has been tried
again. google-cloud-storage is imported on first use; Orbax and epath use gcsfs.
"""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from polycom_jax._bucket_errors import translated
from polycom_jax._errors import InputError
from polycom_jax._files import Exhausted, passes, retried

T = TypeVar("T")

EMULATOR = "STORAGE_EMULATOR_HOST"
"""The variable that names a server to use instead of Google's, which then needs no credentials."""

WAITS_S = (0.2, 0.8, 2.0, 4.0, 8.0)
"""Seconds before each further try: a bucket's server may be away for longer than a disk."""

_TIMEOUT_S = (5.0, 60.0)  # to connect; between two parts of an answer
_THREADS = 8

_ONCE: dict[str, Any] = {"retry": None, "timeout": _TIMEOUT_S}
"""How google-cloud-storage is called: what passes is tried again here, and nowhere twice."""

_EMULATED = {
    "NO_GCE_CHECK": "true",
    "GCE_METADATA_HOST": "127.0.0.1:9",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "fake",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}
"""What keeps the clients of an emulator from asking Google who they are."""


@dataclass(frozen=True)
class Entry:
    """One file of a listing.

    Attributes:
        size: in bytes.
        checksum: CRC-32C as the bucket keeps it, in base64; None: of a local file.
        generation: another one whenever it is written: the bucket's, or the local time of change.
    """

    size: int
    checksum: str | None
    generation: int


def prepare() -> None:
    """Sets up the other clients of buckets, before their first use, for several processes.

    gcsfs keeps listings for ever, so checkpoints of other processes would stay unseen. With an
    emulator, none of them must ask Google for credentials, and TensorStore must find it, too.
    """
    emulator = server()
    options: dict[str, Any] = {"use_listings_cache": False}
    if emulator:
        options["token"] = "anon"
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = emulator
        for name, value in _EMULATED.items():
            os.environ.setdefault(name, value)
    if _is_installed("fsspec"):
        import fsspec.config

        for protocol in ("gcs", "gs"):
            fsspec.config.conf.setdefault(protocol, {}).update(options)


def why_not(place: str) -> InputError | None:
    """What is missing to use a place in a bucket; None: nothing is."""
    missing = [name for name in ("gcsfs", "google.cloud.storage") if not _is_installed(name)]
    if missing:
        return InputError(
            f"{place} needs {' and '.join(missing)}: pip install 'polycom-jax[gcs]', or mount the"
            " bucket (gcsfuse) and name its local path."
        )
    bucket, name = _split(place)

    def first() -> list[Any]:
        how: dict[str, Any] = {"retry": None, "timeout": (3.0, 5.0)}
        with translated(place):
            _client().get_bucket(bucket, **how)  # Orbax asks for it; roles for objects forbid it
            return list(_client().list_blobs(bucket, prefix=name, max_results=1, **how))

    try:
        retried(first, waits=(0.5, 2.0))
    except FileNotFoundError:
        make = f"`gcloud storage buckets create gs://{bucket}`"
        return InputError(f"There is no bucket {bucket!r}: {make} makes one, if the name is right.")
    except PermissionError as error:
        return InputError(f"{place} cannot be used: {error.strerror}.")
    except OSError as error:
        return InputError(f"{place} cannot be reached: {error.strerror or error}.")
    return None


def put(place: str, source: bytes | Path, generation: int | None = None) -> int | None:
    """Puts bytes, or a local file's, in one request.

    Args:
        place: of the object.
        source: what to put.
        generation: put it only where this one is there now, 0: none; None: whatever is there.

    Returns:
        The new generation; None: another one is there.

    Raises:
        OSError: it cannot be written.
    """
    tries = 0

    def once() -> int | None:
        nonlocal tries
        tries += 1
        blob, how = _blob(place), {"if_generation_match": generation, **_ONCE}
        try:
            if isinstance(source, bytes):
                blob.upload_from_string(source, **how)
            else:
                blob.upload_from_filename(str(source), **how)
        except Exception as error:
            code = getattr(error, "code", None)
            if code == 412 or (code == 404 and generation):  # written, or removed, meanwhile
                return None
            raise
        return blob.generation

    made = _asked(place, once)
    if made is None and tries > 1:  # an earlier try may have arrived, and its answer been lost
        with contextlib.suppress(FileNotFoundError):
            found, now = get(place)
            return now if found == source else None
    return made


def get(place: str, start: int = 0, size: int | None = None) -> tuple[bytes, int]:
    """The bytes from `start`, `size` of them or all, and the generation that they are of.

    Raises:
        OSError: there is no such object, or it cannot be read.
    """
    if size == 0:
        return b"", 0
    part: dict[str, Any] = {}
    if start or size is not None:
        part = {"start": start, "end": size and start + size - 1, "checksum": None}

    def once() -> tuple[bytes, int]:
        blob = _blob(place)
        try:
            return blob.download_as_bytes(**part, **_ONCE), blob.generation
        except Exception as error:
            if getattr(error, "code", None) == 416:  # it ends before `start`
                return b"", 0
            raise

    return _asked(place, once)


def copy(source: str, place: str) -> None:
    """Puts an object's bytes at another place; they do not leave the bucket's server.

    Raises:
        OSError: there is no such object, or the other cannot be written.
    """

    def once() -> None:
        token, old, new = None, _blob(source), _blob(place)
        while True:  # a large object takes several requests
            token, *_ = new.rewrite(old, token=token, **_ONCE)
            if token is None:
                return

    _asked(place, once)


def download(place: str, local: Path) -> None:
    """Writes the bytes of an object to a local file.

    Raises:
        OSError: there is no such object, or it cannot be read, or the file not be written.
    """
    _asked(place, lambda: _blob(place).download_to_filename(str(local), **_ONCE))


def listed(folder: str) -> dict[str, Entry]:
    """All objects below a folder, by their names within it.

    Raises:
        OSError: they cannot be listed.
    """
    return _asked(folder, lambda: dict(_pages(folder)))


def folders(folder: str) -> list[str]:
    """The names of the folders right below one, sorted.

    Raises:
        OSError: they cannot be listed.
    """
    bucket, prefix = _prefix(folder)

    def once() -> list[str]:
        pages = _client().list_blobs(bucket, prefix=prefix, delimiter="/", **_ONCE)
        for _ in pages:  # prefixes are known once the pages are read
            pass
        return sorted(name.removeprefix(prefix).rstrip("/") for name in pages.prefixes)

    return _asked(folder, once)


def is_object(place: str) -> bool:
    """Whether there is such an object."""
    return _asked(place, lambda: bool(_split(place)[1]) and _blob(place).exists(**_ONCE))


def holds_any(folder: str) -> bool:
    """Whether there is an object below a folder."""
    return _asked(folder, lambda: next(_pages(folder, max_results=1), None) is not None)


def remove(place: str) -> None:
    """Removes an object.

    Raises:
        OSError: there is none, or it cannot be removed.
    """
    _asked(place, lambda: _blob(place).delete(**_ONCE))


def remove_all(folder: str) -> None:
    """Removes all objects below a folder.

    Raises:
        OSError: one cannot be removed.
    """

    def gone(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            remove(f"{folder}/{name}")

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(gone, listed(folder)))


def _pages(folder: str, **more: Any) -> Iterator[tuple[str, Entry]]:
    bucket, prefix = _prefix(folder)
    fields = "items(name,size,crc32c,generation),nextPageToken"
    for blob in _client().list_blobs(bucket, prefix=prefix, fields=fields, **more, **_ONCE):
        name = blob.name.removeprefix(prefix)
        if name and not name.endswith("/"):  # such objects stand for folders in the web console
            yield name, Entry(blob.size, blob.crc32c, blob.generation)


def _asked(place: str, call: Callable[[], T]) -> T:
    """What a bucket answers, asked again while its server is away."""

    def once() -> T:
        with translated(place):
            return call()

    try:
        return retried(once, waits=WAITS_S)
    except OSError as error:
        if not passes(error):
            raise
        raise Exhausted(error.errno, error.strerror, error.filename) from error


def _split(place: str) -> tuple[str, str]:
    """Bucket, and name of the object."""
    bucket, _, name = place.removeprefix("gs://").partition("/")
    return bucket, name


def _prefix(folder: str) -> tuple[str, str]:
    """Bucket, and what the names of all objects in a folder begin with."""
    bucket, name = _split(folder)
    return bucket, f"{name}/" if name else ""


def _blob(place: str) -> Any:
    bucket, name = _split(place)
    return _client().bucket(bucket).blob(name)


def server() -> str | None:
    """The emulator that is asked; None: Google."""
    return os.environ.get(EMULATOR)


def _client() -> Any:
    """One a process: a child that was forked must not share its parent's connections."""
    return _client_of(os.getpid(), server())


@functools.cache
def _client_of(process: int, emulator: str | None) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    if emulator:
        return storage.Client(project="none", credentials=AnonymousCredentials())
    return storage.Client()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False
