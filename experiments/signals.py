"""Stopping between two steps: a first Ctrl-C, or SIGTERM, asks; a second Ctrl-C insists."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax

from experiments.cli import Stop


class StopRequest:
    """Which signal has asked for the end, if any."""

    number: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def reached(self, step: int) -> Stop:
        """The end of a run that was asked to stop and has saved `step`."""
        number = self.number or signal.SIGTERM
        return Stop(
            f"stopped by {number.name}, saved at step {step}; the same command goes on from there.",
            code=128 + number,
        )


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catches SIGINT and SIGTERM while the block runs.

    With several hosts signals keep their usual effect: one host that leaves the loop alone would
    leave the others waiting for it in a collective.
    """
    request = StopRequest()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def ask(number: int, frame: FrameType | None) -> None:
        request.number = signal.Signals(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    try:
        for number in caught:
            signal.signal(number, ask)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
