"""Stopping between two steps: a first Ctrl-C or SIGTERM asks, a second one insists."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from experiments.cli import Stop
from polycom_jax.hosts import agree_on_stop

SHOW_CURSOR = "\x1b[?25h"
"""To a terminal: the progress bar hides the cursor; a second signal leaves no time to undo that."""


class StopRequest:
    """Which signal has asked for the end, if any."""

    number: signal.Signals | None = None

    def due(self, step: int) -> bool:
        """Does the run end behind `step`? All hosts get the same answer, at a step they agree on.

        `number` is what the host that was asked first was asked, if so.
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


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catches SIGINT and SIGTERM while the block runs: the first one says so and is noted."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def ask(number: int, frame: FrameType | None) -> None:
        request.number = signal.Signals(number)
        # The system's own action: KeyboardInterrupt would wait for the device and for checkpoints.
        # One that is cut short does not count, so nothing is lost that was saved.
        for caught_number in caught:
            signal.signal(caught_number, signal.SIG_DFL)
        # Past Python's buffers: the signal may have come amid a write to them.
        with contextlib.suppress(OSError):
            text = "\nstopping after this step; again to end at once\n"
            os.write(2, (SHOW_CURSOR * os.isatty(2) + text).encode())

    try:
        for number in caught:
            signal.signal(number, ask)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
