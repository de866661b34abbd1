"""Ending early: the first Ctrl-C or SIGTERM saves and ends; a second one, or time, ends at once.

Python runs a signal handler only between two bytecodes of the main thread: not while XLA compiles,
nor while it waits for a device. Its C handler, though, writes the signal's number to
`signal.set_wakeup_fd` at once, and a thread reads it there. That thread is the one that owns both
signals for as long as a program trains; `jax.distributed`'s own handler is off (see `hosts`).

Exit codes: 128 + the signal's number, 143 for SIGTERM and 130 for Ctrl-C, whether or not there was
anything to save. The same command goes on.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax

from experiments.terminal.program import Stop, report_error
from polycom_jax.hosts import agree_on_stop, leave

CAUGHT = (signal.SIGINT, signal.SIGTERM)

GRACE_S = 25.0
"""Seconds within which a first Ctrl-C or SIGTERM ends a study, what it was doing saved."""

SHOW_CURSOR = "\x1b[?25h"
"""To a terminal: the progress bar hides the cursor; an end at once leaves no time to undo that."""


class StopRequest:
    """Which signal has asked for the end, if any.

    Attributes:
        number: the first signal; None: none has come.
        grace_s: seconds within which the process ends after it, whatever it is doing.
        setting: that they are read from, if one is.
    """

    number: signal.Signals | None = None

    def __init__(self, grace_s: float, setting: str | None = None) -> None:
        self.grace_s, self.setting = grace_s, setting
        self._heeded = False

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Within the block the program asks `due` after each step, and saves.

        Elsewhere there is nothing to save that is not on the disk, and a signal ends the process
        at once: what it was making (data, programs) appears complete or not at all.
        """
        self._heeded = True
        try:
            yield
        finally:
            self._heeded = False

    def cuts(self) -> bool:
        """Is an evaluation to be cut short? Only where no other process would have to agree."""
        return self.number is not None and jax.process_count() == 1

    def due(self, step: int) -> bool:
        """Does the run end behind `step`? All processes get the same answer, at the same step.

        `number` is what the process that was asked first was asked, if so.
        """
        number = agree_on_stop(step, self.number)
        if number is not None:
            self.number = signal.Signals(number)
        return number is not None

    def reached(self, step: int) -> Stop:
        """The end of a run that was asked to stop and has saved `step`."""
        number = self.number or signal.SIGTERM
        return Stop(
            f"stopped by {number.name}, saved at step {step}; the same command goes on from there.",
            code=128 + number,
        )

    def watch(self, inbox: socket.socket) -> None:
        """The thread: reads signals' numbers from `inbox` until the other end is closed."""
        deadline: float | None = None
        while True:
            inbox.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
            try:
                found = inbox.recv(1)
            except TimeoutError:
                whose = f" ({self.setting})" if self.setting else ""
                self._end(f"what it was doing took longer than {self.grace_s:g} s{whose}")
                return
            if not found:
                return
            if found[0] not in CAUGHT:
                continue
            if deadline is not None:
                _show_cursor()
                os._exit(128 + found[0])
            deadline = time.monotonic() + self.grace_s
            self.number = signal.Signals(found[0])
            if self._heeded:
                _say("\nstopping after this step; again to end at once\n")
            else:
                self._end("there is nothing new to save")

    def _end(self, why: str) -> None:
        """Ends the process from this thread: the main one may be in compiled code."""
        number = self.number or signal.SIGTERM
        text = f"stopped by {number.name}: {why}; the same command goes on from the last checkpoint"
        _show_cursor()
        leave(Stop(f"{text}, if there is one.", code=128 + number), report_error)


@contextlib.contextmanager
def stop_request(grace_s: float, setting: str | None = None) -> Iterator[StopRequest]:
    """Owns SIGINT and SIGTERM while the block runs, in the main thread; elsewhere none comes."""
    request = StopRequest(grace_s, setting)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    thread = threading.Thread(
        target=request.watch, args=(inbox,), name="experiments.run.signals", daemon=True
    )
    before = {number: signal.getsignal(number) for number in CAUGHT}

    def insist(number: int, frame: FrameType | None) -> None:
        # Where the main thread is free to come here, a second signal is the system's own affair:
        # it ends the process though Python hang. What is cut short does not count as saved.
        for caught in CAUGHT:
            signal.signal(caught, signal.SIG_DFL)

    thread.start()
    fd_before = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    try:
        for number in CAUGHT:
            signal.signal(number, insist)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        outbox.close()
        thread.join()
        inbox.close()


def _say(text: str) -> None:
    """Past Python's buffers, whose locks the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _show_cursor() -> None:
    if os.isatty(2):
        _say(SHOW_CURSOR)
