"""A thread that tells other hosts that this one lives, and ends this one when another is gone.

A collective waits for ever for a host that has died, in compiled code that no exception reaches.
So a thread ends the process. JAX's own watch would do that too, but by a crash with a stack trace;
it stays behind this one, with a longer time-out.

Signs of life go through JAX's store, which is in the first host's process. A second thread writes
and reads them, since a call never returns once that process hangs; where it is gone, the relay
through which others reach it knows at once.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import jax

from polycom_jax.hosts.config import Place
from polycom_jax.hosts.lobby import named
from polycom_jax.hosts.meeting import WAIT_S, HostsError, entries, store

POLL_S = 1.0
"""Between two signs of life."""

GRACE_S = 3.0
"""How long a host whose neighbour has failed may go on: as a rule it meets the same error."""

LEAVE_S = 20.0
"""How long the first host, which all others depend on, waits for them to end before it does."""

TELL_S = 1.0
"""How long telling the others may take: where the first host hangs, it never returns."""

_BEAT, _ENDED, _LEFT, _STOP = (f"polycom_jax/{name}/" for name in ("beat", "ended", "left", "stop"))

SKEW = 2
"""Steps ahead at which hosts can agree to stop (see `agree_on_stop`)."""

Tell = Callable[[BaseException], int]
"""Says an error to the person who runs the program; returns the exit code."""


@dataclass(frozen=True)
class Block:
    """A block of `together` that this host is in.

    Attributes:
        what: its name.
        number: how many it has come to.
        since: when it did.
        limit_s: how long it may take.
    """

    what: str
    number: int
    since: float
    limit_s: float


class Seen:
    """When the signs of another host last changed."""

    def __init__(self, now: float) -> None:
        self.beat, self.step, self.block = "", -1, 0
        self.beat_at = self.step_at = now

    def update(self, text: str, now: float) -> None:
        """Takes its latest sign, "BEAT STEP BLOCK"."""
        beat, step, block = text.split()
        self.block = int(block)
        if beat != self.beat:
            self.beat, self.beat_at = beat, now
        if int(step) != self.step:
            self.step, self.step_at = int(step), now


class Watch(threading.Thread):
    """The thread of one host.

    Args:
        place: which host this is.
        lost_after_s: a host that gave no sign for so long is lost.
        tell: says why the process ends.
        first_gone: set when the first host's process is gone; None on that host itself.
    """

    def __init__(
        self,
        place: Place,
        lost_after_s: float,
        tell: Tell,
        first_gone: threading.Event | None = None,
    ) -> None:
        super().__init__(name="polycom_jax.hosts", daemon=True)
        self._place, self._lost_after_s, self._tell = place, lost_after_s, tell
        self._first_gone = first_gone or threading.Event()
        self._found: str | None = None
        self._reached = time.monotonic()
        self.step, self._beat = 0, 0
        self.block: Block | None = None
        self.blocks = 0
        now = time.monotonic()
        self._seen = {i: Seen(now) for i in range(place.count)}
        self._done, self._leaving = threading.Event(), threading.Lock()

    def run(self) -> None:
        """Looks on until `finish`, or until something is wrong."""
        threading.Thread(target=self._speak, name="polycom_jax.beat", daemon=True).start()
        while not self._done.wait(POLL_S):
            text = self._found
            if self._first_gone.is_set():
                text = self._gone()
            elif time.monotonic() - self._reached > self._lost_after_s:
                text = self._lost(0)
            if text and not self._done.wait(GRACE_S):
                self.leave(HostsError(self._found or text))

    def _speak(self) -> None:
        """Polls until something is wrong."""
        while not self._done.wait(POLL_S) and self._found is None:
            now = time.monotonic()
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._found = self._poll(now)
                self._reached = now

    def finish(self) -> None:
        """Ends the thread; all hosts have met before."""
        self._done.set()
        self.join()

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this host's process for an error in its main thread, and tells the others."""
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective that breaks because another host died comes first; who it was, later.
            time.sleep(self._lost_after_s + GRACE_S + 3 * POLL_S)
        self.leave(error)

    def leave(self, error: BaseException) -> NoReturn:
        """Ends the process past `atexit`, where JAX would wait for hosts that do not come."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # The other thread is at it.
        index, count = self._place.index, self._place.count
        own = f"host {index} (of 0 to {count - 1}) ended: {' '.join(str(error).split())}"
        self._write(_ENDED, str(error) if isinstance(error, HostsError) else own)
        code = self._tell(error)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        self._write(_LEFT, "")
        if index == 0:
            self._wait_for_others()
        os._exit(code)

    def _write(self, place: str, text: str) -> None:
        """Tells the others, if the store still takes it."""

        def write() -> None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                store().key_value_set(f"{place}{self._place.index}", text, allow_overwrite=True)

        if not self._first_gone.is_set():
            thread = threading.Thread(target=write, daemon=True)
            thread.start()
            thread.join(TELL_S)

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + LEAVE_S
        lost = {
            i
            for i, seen in self._seen.items()
            if time.monotonic() - seen.beat_at > self._lost_after_s
        }
        while time.monotonic() < deadline:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                if len(entries(_LEFT).keys() | lost) == self._place.count:
                    time.sleep(0.5)  # They write that they leave, and then do.
                    return
            time.sleep(0.1)

    def _poll(self, now: float) -> str | None:
        """Gives a sign of life and reads the others'; returns what is wrong, if anything is."""
        self._beat += 1
        sign = f"{self._beat} {self.step} {self.blocks}"
        store().key_value_set(f"{_BEAT}{self._place.index}", sign, allow_overwrite=True)
        for host, text in entries(_BEAT).items():
            self._seen[host].update(text, now)
        ended = entries(_ENDED)
        if ended:
            return ended[min(ended)]
        return self._find_lost(now) or self._find_stuck(now) or self._find_absent(now)

    def _find_lost(self, now: float) -> str | None:
        lost = {i for i, s in self._seen.items() if now - s.beat_at > self._lost_after_s}
        return self._lost(*lost) if lost else None

    def _lost(self, *hosts: int) -> str:
        return (
            f"No sign of life from {named(set(hosts), self._place.count)} for"
            f" {self._lost_after_s:g} s (hosts.lost_after_s). The same command on all hosts goes on"
            " from the last checkpoint."
        )

    def _gone(self) -> str:
        return (
            f"The process of {named({0}, self._place.count)} is gone. The same command on all hosts"
            " goes on from the last checkpoint."
        )

    def _find_stuck(self, now: float) -> str | None:
        own = self._seen[self._place.index]
        behind = {
            i: s.step
            for i, s in self._seen.items()
            if s.step < own.step and now - max(s.step_at, own.step_at) > WAIT_S
        }
        if not behind:
            return None
        return (
            f"Waited {WAIT_S:g} s at step {own.step} for {named(set(behind), self._place.count)},"
            f" still at step {min(behind.values())}."
        )

    def _find_absent(self, now: float) -> str | None:
        """Is this host in a block of `together` in vain?"""
        block = self.block
        if block is None or now - block.since <= WAIT_S:
            return None
        waited = now - block.since
        absent = {i for i, s in self._seen.items() if s.block < block.number}
        if not absent and waited <= block.limit_s:
            return None
        others = absent or set(self._seen) - {self._place.index}
        return (
            f"Waited {waited:.0f} s for {named(others, self._place.count)} to"
            f" {'come to' if absent else 'get through'}: {block.what}."
        )


running: Watch | None = None
"""The watch of this process, set by `joined`."""


def leave(error: BaseException, tell: Tell) -> NoReturn:
    """Ends this process from whichever thread, says why by `tell`, and lets other hosts know."""
    if running is not None:
        running.leave(error)
    os._exit(tell(error))


@contextlib.contextmanager
def together(what: str, *, limit_s: float = math.inf) -> Iterator[None]:
    """A block that all hosts go through, and in which they wait for each other in others' code.

    What waits there (a collective, a barrier of Orbax) may do so for ever and names nobody. The
    process ends with a `HostsError` once it has been in the block for `WAIT_S` and another host has
    not come to it, or for `limit_s` in any case. On a single host nothing is watched.

    Args:
        what: name of the block, for the message.
        limit_s: longer than whatever the block does, if that is known.
    """
    if (own := running) is None:
        yield
        return
    own.blocks += 1
    own.block = Block(what, own.blocks, time.monotonic(), limit_s)
    try:
        yield
    finally:
        own.block = None


def agree_on_stop(step: int, asked: int | None) -> int | None:
    """The signal to stop for behind `step`, the same on all hosts; None: go on.

    Every host calls it after each step n, when it has read the numbers of step n - 1 and before it
    dispatches step n + 1. Who is asked writes down step n + `SKEW` and only then goes on. No host
    is behind that step before then: to be there it must have read the numbers of step n + 1, and
    those need every host. When it gets there, it finds what was written. It looks while the
    device works.

    Args:
        step: number of the step that was dispatched last.
        asked: the signal that asked this host to stop, if one did.

    Returns:
        On a single host `asked`, else what the host that wrote first was asked, at its step.
    """
    if running is None:
        return asked
    running.step = step
    if asked is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another one was first.
            store().key_value_set(f"{_STOP}0", f"{step + SKEW} {asked}", allow_overwrite=False)
    if not (found := entries(_STOP)):
        return None
    stop, number = map(int, found[0].split())
    return number if step >= stop else None
