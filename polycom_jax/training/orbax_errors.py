"""Calls into Orbax whose failures come back as one line instead of on the terminal."""

import asyncio
import functools
import gc
import importlib.util
import inspect
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from typing import Any, Self, TypeGuard

import jax

from polycom_jax._errors import InputError
from polycom_jax.hosts import HostsError

_LONGEST = 240
"""Longest message of a failure, in characters."""


class Failure(str):
    """What went wrong in Orbax, in a line.

    Attributes:
        damage: does it prove that files are not as they were written?
        of_server: is it that a bucket's server does not answer, though asked again and again?
    """

    damage: bool
    of_server: bool

    def __new__(cls, error: BaseException) -> Self:
        """The message of its first cause, whose ends name the array and the reason."""
        while error.__cause__ is not None:
            error = error.__cause__
        whole = str(error).partition(" [tensorstore_spec")[0]
        text, half = " ".join(whole.split()) or repr(error), _LONGEST // 2
        if len(text) > _LONGEST:
            text = f"{text[:half]} ... {text[-half:]}"
        self = super().__new__(cls, text)
        proven = _DAMAGED.match(str(error)) is not None and "os_error_code" not in str(error)
        # A record under a damaged name stays a plain dict, which has none of its attributes.
        unnamed = isinstance(error, AttributeError) and isinstance(error.obj, dict)
        self.damage = proven or unnamed or isinstance(error, _DAMAGE)
        library = type(error).__module__.partition(".")[0]
        self.of_server = library in _CLIENTS or "retry attempts failed" in whole
        return self


_DAMAGE = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
    *(json.JSONDecodeError, UnicodeDecodeError, KeyError),
)
"""Errors of Orbax that only other files than it has written can cause."""

_CLIENTS = frozenset({"aiohttp", "gcsfs", "google", "requests", "urllib3"})
"""Packages of the errors that Orbax meets where it writes to a bucket without TensorStore."""

_DAMAGED = re.compile(r"((DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION): )?Error (op|read)")
"""How TensorStore says so: files that are missing, end early, or cannot be decoded. What the system
refuses (another status, or one with its `os_error_code`) says nothing of what is in them."""


_WRITING = re.compile(
    r'([A-Z_]+: )?(Error opening "\w+" driver: )?Error writing ".*" in OCDBT database'
)
"""How TensorStore reports an array that it could not write, to a future that nobody waits for."""


def quietly(f: Callable[[], Any]) -> tuple[Any, Failure | None]:
    """Calls `f`: (its result, None), or (None, what went wrong).

    What is not about files goes through: bad input, a lack of memory, errors of the device.
    """
    with Silence() as silence:
        try:
            return f(), None
        except jax.errors.JaxRuntimeError as error:
            if str(error).startswith("DEADLINE_EXCEEDED"):  # of a barrier
                what = " ".join(str(error).split())
                text = f"Processes waited for each other in a checkpoint: {what}"
                raise HostsError(text) from error
            raise
        except (InputError, HostsError, MemoryError):
            raise
        except Exception as error:  # Orbax raises bare `Exception` for what it cannot read
            failure = Failure(error)
        _collect(silence.reports)
        if failure.of_server:  # it is asked for other arrays still, which will complain as well
            Silence().__enter__()
        return None, failure


def collect_quietly() -> None:
    """Deletes what failed calls have left, once it is no longer referred to."""
    with Silence() as silence:
        _collect(silence.reports)


def _collect(reports: list[str]) -> None:
    """Waits for what a failed call left under way: it complains when it ends, or is deleted.

    When one array fails, Orbax closes its event loop while TensorStore still works on others. Each
    of those reports the closed loop, and its coroutine that it was cut off. On a busy machine that
    takes a while: until then a task is there that waits for TensorStore.
    """
    deadline, seen, waiting = time.monotonic() + 5.0, -1, False
    while (waiting or seen < len(reports)) and time.monotonic() < deadline:
        seen = len(reports)
        time.sleep(0.2)
        waiting = inspect.CORO_SUSPENDED in _cut_off()
        gc.collect()


def _cut_off() -> list[str]:
    """States of Orbax's coroutines whose loop is closed.

    Those that the loop never began are ended; deleted, they would warn of it.
    """
    states = []
    for task in gc.get_objects():
        if type(task) is asyncio.Task and task.get_loop().is_closed():
            coroutine = task.get_coro()
            if _is_coroutine_of_orbax(coroutine):
                states.append(inspect.getcoroutinestate(coroutine))
                if states[-1] == inspect.CORO_CREATED:
                    coroutine.close()
    return states


class Silence:
    """Keeps off the terminal what Orbax says in its log and, cut off, by `sys.unraisablehook`.

    Messages of Orbax are known by the file that they come from; all others go where they went
    before. Any number may be open, in any threads, and end in any order: the first one puts the
    hooks in place, the last one takes them out. A class and no generator, which would be finished,
    too late, when the interpreter ends.

    Attributes:
        reports: what was held back of `sys.unraisablehook` meanwhile.
    """

    def __init__(self) -> None:
        self.reports: list[str] = []

    def __enter__(self) -> Self:
        with _lock:
            _open.append(self)
            _put_hooks()
        return self

    def __exit__(self, *exception: object) -> None:
        with _lock:
            if self in _open:
                _open.remove(self)
            if not _open:
                _take_hooks()


_GCSFS = "gcsfs"
"""Logs what it raises too, where a bucket's server has been away for all its tries."""

_open: list[Silence] = []
_hooks: list["_Hook"] = []  # for good: a thread may be in one that has been taken out
_lock = threading.RLock()  # the garbage collector may close one while another is being opened
_LOGGERS = ("absl", "asyncio", _GCSFS)


class _Hook:
    """Stands in for `before` as `sys.unraisablehook`. Where others have put theirs above it, it
    can't be taken out, and hands everything on."""

    def __init__(self, before: Callable[[Any], object]) -> None:
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        silences = tuple(_open)
        if not silences or not _is_cut_off(unraisable):
            self.before(unraisable)
            return
        for silence in silences:
            silence.reports.append(str(unraisable.exc_value))


def _put_hooks() -> None:
    importlib.import_module("absl.logging")  # first, or the logger would not be of its class

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_of_others)
    before = sys.unraisablehook
    if len(_open) == 1 and not isinstance(before, _Hook):
        sys.unraisablehook = _hook_above(before)


def _hook_above(before: Callable[[Any], object]) -> _Hook:
    """The one that hands on to `before`."""
    for hook in _hooks:
        if hook.before is before:
            return hook
    _hooks.append(_Hook(before))
    return _hooks[-1]


def _take_hooks() -> None:
    for name in _LOGGERS:
        logging.getLogger(name).removeFilter(_is_of_others)
    while isinstance(hook := sys.unraisablehook, _Hook):
        sys.unraisablehook = hook.before


def _is_of_others(record: logging.LogRecord) -> bool:
    if record.name == _GCSFS:
        return False
    if record.name != "asyncio":
        return not _is_orbax(_origin(record))
    task = re.search(r"coro=<.*? at (.+?):\d+", record.getMessage())
    if task is not None:
        return not _is_orbax(task[1])
    error, trace = record.exc_info[1:] if record.exc_info else (None, None)
    if isinstance(error, ValueError) and _WRITING.match(str(error)):
        for silence in tuple(_open):  # more of them may come, which `_collect` waits for
            silence.reports.append(str(error))
        return False
    return not any(_is_orbax(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(trace))


def _origin(record: logging.LogRecord) -> str:
    """The file that logged it: where the logger is not of absl's class, the record names absl's."""
    import absl.logging

    if record.pathname != absl.logging.__file__:
        return record.pathname
    frame, passed = inspect.currentframe(), (absl.logging.__file__, logging.__file__, __file__)
    assert frame is not None, "CPython has frames."
    while frame.f_back is not None and frame.f_code.co_filename in passed:
        frame = frame.f_back
    return frame.f_code.co_filename


def _is_cut_off(unraisable: Any) -> bool:
    """Is it a coroutine of Orbax, or a thread of TensorStore that finds Orbax's loop closed?"""
    if _is_coroutine_of_orbax(unraisable.object):
        return True
    trace = unraisable.exc_traceback
    if unraisable.object is not None or trace is None:
        return False
    # Nobody's Python called this: there is no frame above the loop's own.
    while trace.tb_next is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe":
        trace = trace.tb_next
    return trace.tb_next is None and trace.tb_frame.f_code.co_name == "_check_closed"


def _is_coroutine_of_orbax(value: Any) -> "TypeGuard[types.CoroutineType[Any, Any, Any]]":
    return isinstance(value, types.CoroutineType) and _is_orbax(value.cr_code.co_filename)


def _is_orbax(file: str) -> bool:
    return file.startswith(_orbax())


@functools.cache
def _orbax() -> str:
    """The folder that Orbax is imported from."""
    spec = importlib.util.find_spec("orbax.checkpoint")
    assert spec is not None, "Orbax is among the requirements."
    assert spec.origin is not None
    return os.path.dirname(spec.origin) + os.sep
