"""What several processes do together: start, meet, stop and end; waits have a limit and names."""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from polycom_jax._errors import InputError
from polycom_jax.hosts.config import HostsConfig
from polycom_jax.hosts.service import find_place, start, store

WAIT_S = 600.0  # of processes for each other, at a meeting and between two steps
LEAVE_S = 20.0  # of one that ends, for the others to know; the service ends with process 0
GRACE_S = 3.0  # of one that knows: as a rule it meets the same error

ReportError = Callable[[BaseException], int]  # prints an error and returns the exit code

_ENDED, _STOP = "polycom_jax/ended", "polycom_jax/stop/"
_counts: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)  # of meetings, by name
_joined, _leaving = threading.Event(), threading.Lock()


class HostsError(RuntimeError):
    """Another process is missing, has ended, or does something else."""


@contextlib.contextmanager
def joined(
    config: HostsConfig, *, report_error: ReportError, common: tuple[type[Exception], ...] = ()
) -> Generator[None]:
    """Within the block JAX sees the devices of all processes; it does nothing for a single one.

    It comes before anything that starts a JAX backend, `jax.devices` for instance. An exception in
    one process ends all: that process reports it by `report_error`, the others report their own
    error or name this process, and none returns from here. Exceptions of `common`, which all
    processes raise at the same place, go through. JAX itself ends a process, by SIGABRT (134 in a
    shell) and its own message that names who is missing, where not all come in
    `config.start_timeout_s` or one is silent for `config.lost_after_s`.

    Raises:
        InputError: the coordinator's port is taken, or the cluster says too little.
    """
    if (place := find_place(config)) is None:
        yield
        return
    start(place, config, lambda error: os._exit(report_error(error)))
    first, shared = jax.process_index() == 0, None  # The backend starts.
    listener = threading.Thread(target=_listen, args=(report_error,), daemon=True)
    listener.start()
    _joined.set()
    try:
        meet("the start", {"hosts.count": place[1]})
        try:
            yield
        except common as error:
            shared = error
        meet("the end")
        if first:
            store().key_value_set(_ENDED, "")
        listener.join()
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective that breaks comes first; whose process is gone, JAX says later.
            time.sleep(config.lost_after_s + 2 * GRACE_S)
        leave(error, report_error)
    if shared is not None:
        raise shared


def _listen(report_error: ReportError) -> None:
    """Ends this process for the error of another one, or returns at the end of all."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # The service is gone: JAX ends it, too.
        if text := store().blocking_key_value_get(_ENDED, 2**31 - 1):
            time.sleep(GRACE_S)
            leave(HostsError(text), report_error)


def leave(error: BaseException, report_error: ReportError) -> NoReturn:
    """Ends this process from any thread, with `report_error`, and lets the others know."""
    if not _leaving.acquire(blocking=False):
        threading.Event().wait()  # Another thread is at it.
    code = report_error(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if _joined.is_set():
        index, text = jax.process_index(), " ".join(str(error).split())
        if not isinstance(error, HostsError):
            text = f"{named([index])} ended: {text}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store().key_value_set(_ENDED, text, allow_overwrite=True)
            store().wait_at_barrier("polycom_jax/leave", round(1000 * LEAVE_S))
        time.sleep(0.5 if index == 0 else 0)  # Others are gone before the service is.
    os._exit(code)  # past `atexit`, where JAX would wait for processes that do not come


def agree_on_stop(step: int, asked: int | None) -> int | None:
    """The signal to stop for behind `step`, the same on all processes; None: go on.

    Each calls it after each step, with the signal that asked it to stop if one did, and waits for
    the others while the device works: who was asked before has written it down by then.

    Raises:
        HostsError: some have not come to the step within `WAIT_S`; they are named.
    """
    if jax.process_count() == 1:
        return asked
    if asked is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # where another one was first
            store().key_value_set(f"{_STOP}0", f"{step} {asked}")
    _wait_for_all(f"step {step}", "step", WAIT_S)
    found = [tuple(map(int, text.split())) for _, text in store().key_value_dir_get(_STOP)]
    return next((number for since, number in found if since <= step), None)


def meet(what: str, values: Mapping[str, Any] | None = None, *, timeout_s: float = WAIT_S) -> None:
    """Returns once all processes have come to `what` with the same JSON-able `values`, by name.

    Raises:
        HostsError: as `gather`.
        InputError: a process has other values; it is named, with the first that differs.
    """
    (_, first), *others = sorted(gather(what, dict(values or {}), timeout_s=timeout_s).items())
    for process, own in others:
        for name in sorted(first.keys() | own.keys()):
            if (here := own.get(name)) != (there := first.get(name)):
                text = f"{name} is {here!r} on process {process} and {there!r} on process 0"
                rule = "give all the same command, code and files"
                raise InputError(f"Processes differ in {what}: {text}; {rule}.")


def gather(what: str, value: Any, *, timeout_s: float = WAIT_S) -> dict[int, Any]:
    """Returns the JSON-able `value` that each process has come to `what` with, by process.

    Raises:
        HostsError: processes have not come after `timeout_s`; they are named.
    """
    if jax.process_count() == 1:
        return {0: value}
    folder = f"polycom_jax/{what}/{next(_counts[what])}/"
    store().key_value_set(f"{folder}{jax.process_index()}", json.dumps(value, sort_keys=True))
    _wait_for_all(what, folder, timeout_s)
    found = store().key_value_dir_get(folder)
    return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}


def _wait_for_all(what: str, barrier: str, timeout_s: float) -> None:
    try:
        store().wait_at_barrier(f"polycom_jax/{barrier}", round(1000 * timeout_s))
    except jax.errors.JaxRuntimeError as error:
        missing = re.findall(r"^\d+$", str(error), re.MULTILINE)
        if not str(error).startswith("DEADLINE_EXCEEDED") or not missing:
            raise
        text = f"Waited {timeout_s:g} s for {named(map(int, missing))} to come to: {what}."
        raise HostsError(text) from error


def named(processes: Iterable[int]) -> str:
    """ "processes 1, 3 of 8"."""
    found = [str(process) for process in sorted(processes)]
    return f"process{'es'[: 2 * len(found) - 2]} {', '.join(found)} of {jax.process_count()}"
