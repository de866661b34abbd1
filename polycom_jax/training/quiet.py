"""Calls into Orbax whose failures come back as one line instead of on the terminal."""

import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Self

import jax

from polycom_jax._errors import InputError
from polycom_jax.hosts import HostsError


def quietly(f: Callable[[], Any]) -> tuple[Any, str | None]:
    """Calls `f`: (its result, None), or (None, what went wrong).

    What is not about files goes through: bad input, a lack of memory, errors of the device.
    """
    with Silence() as silence:
        try:
            return f(), None
        except jax.errors.JaxRuntimeError as error:
            if str(error).startswith("DEADLINE_EXCEEDED"):  # of a barrier
                what = " ".join(str(error).split())
                raise HostsError(f"Hosts waited for each other in a checkpoint: {what}") from error
            raise
        except (InputError, HostsError, MemoryError):
            raise
        except Exception as error:  # Orbax raises bare `Exception` for what it cannot read
            failure = " ".join(str(error).split())[:240] or repr(error)
        _collect(silence.reports)
        return None, failure


def collect_quietly() -> None:
    """Deletes what failed calls have left, once it is no longer referred to."""
    with Silence() as silence:
        _collect(silence.reports)


def _collect(reports: list[str]) -> None:
    """Waits for what a failed call left under way: it complains when it ends, or is deleted.

    When one array fails, Orbax closes its event loop while TensorStore still works on others. Each
    of those reports the closed loop, and its coroutine that it was cut off.
    """
    deadline, seen = time.monotonic() + 5.0, -1
    while seen < len(reports) and time.monotonic() < deadline:
        seen = len(reports)
        time.sleep(0.2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            gc.collect()


class Silence:
    """Keeps off the terminal what Orbax says in its log and, cut off, by `sys.unraisablehook`.

    `reports` are those held back of the latter; everybody else's go where they went before. A class
    and no generator, which would be finished, too late, when the interpreter ends.
    """

    def __init__(self) -> None:
        self.reports: list[str] = []
        self._loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
        self._hook = sys.unraisablehook

    def __enter__(self) -> Self:
        self._hook = sys.unraisablehook
        for logger in self._loggers:
            logger.addFilter(self._is_of_others)
        sys.unraisablehook = self._hold_back
        return self

    def __exit__(self, *exception: object) -> None:
        sys.unraisablehook = self._hook
        for logger in self._loggers:
            logger.removeFilter(self._is_of_others)

    def _is_of_others(self, record: logging.LogRecord) -> bool:
        text = record.pathname + logging.Formatter().format(record)  # with its traceback
        return not any(name in text.lower() for name in ("orbax", "tensorstore", "ocdbt"))

    def _hold_back(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        cut_off = code is not None and "orbax" in code.co_filename
        if cut_off or "Event loop is closed" in str(unraisable.exc_value):
            self.reports.append(str(unraisable.exc_value))
        else:
            self._hook(unraisable)
