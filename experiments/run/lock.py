"""One writer to a folder: on this machine by a lock of the system, across machines by a heartbeat.

The lock is a POSIX record lock, not `flock`: a child that the run has forked inherits the latter,
and would hold it after the run is killed. It belongs to one process and ends with it, whatever
its children do; the kernel keeps it, so no process number is compared and none can be taken for
another's. Not every file system shared by machines passes it on. So the holder also writes a beat
into the file every few seconds, and who finds a beat of another machine waits whether it changes.

A folder in a bucket is held by a lease there (`polycom_jax.storage.Lease`), and by a lock on this
machine beside it: who gets that one knows that the holder of a lease from this machine is no more.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from polycom_jax import storage
from polycom_jax._files import in_made

NAME = ".lock"

BEAT_S = 5.0
"""Between two beats of who holds a folder."""

LOST_S = 30.0
"""A beat of another machine that has not changed for so long is of a run that is no more."""

AGAIN_S = 2.0
"""Between two looks whether what another run holds is free."""

_POLL_S = 0.5

_held: set[tuple[int, int]] = set()
"""Files (device, inode) that this process has locked: the system lets it lock them again."""

_taking = threading.Lock()
"""What threads change in `_held` goes with what they do to the file."""


class Held(Exception):
    """Another run holds the folder; the message says which."""


class Hold(Protocol):
    """What a run asks before it writes to the folder that it holds."""

    def check(self) -> None:
        """Raises `storage.Lost` where it is known to hold it no more; costs nothing."""

    def confirm(self) -> None:
        """Returns if it holds it now; raises `storage.Lost`, or `OSError` if it cannot find out."""


class Kept:
    """A lock of the operating system, which no other process can take away."""

    def check(self) -> None:
        """Returns."""

    def confirm(self) -> None:
        """Returns."""


@contextlib.contextmanager
def locked(
    folder: storage.Place, *, notify: Callable[[str], None] = lambda text: None, name: str = NAME
) -> Iterator[Hold]:
    """Holds `folder`, which is made if need be, while the block runs.

    At the end the lock's file goes, and folders that were made here and are empty still: a run that
    is refused leaves nothing behind.

    Args:
        folder: to be written to by one run at a time.
        notify: takes a line where another machine's beat has to be watched.
        name: of the lock's file; another one holds what the caller means by it, and not the folder.

    Raises:
        Held: another run holds it.
        OSError: it cannot be made or written to.
    """
    if storage.is_remote(folder):
        with _leased(folder, notify, name) as lease:
            yield lease
        return
    with _on_disk(Path(folder), notify, name):
        yield Kept()


@contextlib.contextmanager
def waited(
    folder: storage.Place, *, notify: Callable[[str], None] = lambda text: None
) -> Iterator[Hold]:
    """`locked`, once nobody else holds it; asks again and again until then, and says all once."""
    told = set[str]()

    def once(text: str) -> None:
        if text not in told:
            notify(text)
        told.add(text)

    with contextlib.ExitStack() as stack:
        while True:
            try:
                hold = stack.enter_context(locked(folder, notify=once))
                break
            except Held as error:
                once(f"waiting for {error}, which writes to {folder}")
                time.sleep(AGAIN_S)
        yield hold


@contextlib.contextmanager
def _on_disk(folder: Path, notify: Callable[[str], None], name: str) -> Iterator[None]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / name
    try:
        handle = in_made(folder, lambda: _acquire(path, notify))
        try:
            with _beating(handle):
                yield
        finally:
            _release(handle, path)
    finally:
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


@contextlib.contextmanager
def _leased(
    folder: storage.Place, notify: Callable[[str], None], name: str
) -> Iterator[storage.Lease]:
    here = Path(tempfile.gettempdir(), f"polycom_jax-{os.getuid()}")
    with _on_disk(here / hashlib.sha256(str(folder).encode()).hexdigest()[:32], notify, name):
        # Another machine, or container, has another file system for what is temporary.
        storage.create(here / "machine", uuid.uuid4().hex.encode())
        machine = storage.read(here / "machine").decode()
        about = {"process": os.getpid(), "host": socket.gethostname(), "machine": machine}
        lease = storage.Lease(
            str(folder / name),
            about,
            is_gone=lambda record: record.get("machine") == machine,
            tell=lambda record: notify(_waiting(_named(record), storage.LOST_S)),
        )
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lease)
            except storage.Held as error:
                raise Held(_named(error.record)) from error
            yield lease


def _acquire(path: Path, notify: Callable[[str], None]) -> int:
    with _taking:
        handle = _taken(path)
        key = _key(os.fstat(handle))
        _held.add(key)
    try:
        _watch_other_machine(handle, notify)
    except BaseException:
        with _taking:
            _held.discard(key)
            os.close(handle)
        raise
    return handle


def _taken(path: Path) -> int:
    """The file, locked; raises `Held` where it is already."""
    while True:
        # First, since to open and close the file would give up the lock that this process has.
        with contextlib.suppress(FileNotFoundError):
            if _key(os.stat(path)) in _held:
                raise Held("another part of this process")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise Held(holder) from error
        # Whoever held it may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if _key(os.stat(path)) == _key(os.fstat(handle)):
                return handle
        os.close(handle)


def _release(handle: int, path: Path) -> None:
    with _taking:
        _held.discard(_key(os.fstat(handle)))
        with contextlib.suppress(OSError):  # The folder may be gone.
            path.unlink()
        os.close(handle)


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _watch_other_machine(handle: int, notify: Callable[[str], None]) -> None:
    """Raises `Held` if the beat in the file is another machine's and changes."""
    first = os.pread(handle, 4096, 0)
    if not first or _read(first).get("host") == socket.gethostname():
        return  # On one machine the lock alone decides, and it is ours.
    notify(_waiting(_holder(first), LOST_S))
    deadline = time.monotonic() + LOST_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        if (now := os.pread(handle, 4096, 0)) != first:
            raise Held(_holder(now))


@contextlib.contextmanager
def _beating(handle: int) -> Iterator[None]:
    done = threading.Event()
    own = {"host": socket.gethostname(), "process": os.getpid(), "run": uuid.uuid4().hex}

    def beat(count: int) -> None:
        text = json.dumps({**own, "beat": count}).encode().ljust(256) + b"\n"
        with contextlib.suppress(OSError):  # A full disk is for the run itself to report.
            os.pwrite(handle, text, 0)

    def go_on() -> None:
        for count in itertools.count(1):
            if done.wait(BEAT_S):
                return
            beat(count)

    beat(0)
    thread = threading.Thread(target=go_on, name="experiments.run.lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _read(beat: bytes) -> dict[str, object]:
    with contextlib.suppress(ValueError):
        found = json.loads(beat)
        if isinstance(found, dict):
            return found
    return {}


def _holder(beat: bytes) -> str:
    return _named(_read(beat))


def _named(record: Mapping[str, Any]) -> str:
    if not record:
        return "another run"
    return f"the run of process {record.get('process')} on {record.get('host')}"


def _waiting(holder: str, seconds: float) -> str:
    return f"{holder} has not given the folder back; waiting {seconds:g} s for a sign of life"
