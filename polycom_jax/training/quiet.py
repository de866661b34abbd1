"""Calls into Orbax whose failures come back as one line instead of on the terminal."""

import contextlib
import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

from polycom_jax._errors import InputError


def quietly(f: Callable[[], Any]) -> tuple[Any, str | None]:
    """Calls `f`: (its result, None), or (None, what went wrong).

    What is not about files goes through: bad input, a lack of memory, errors of the device.
    """
    with silence() as reports:
        try:
            return f(), None
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Orbax raises bare `Exception` for what it cannot read
            failure = " ".join(str(error).split())[:240] or repr(error)
        _collect(reports)
        return None, failure


def collect_quietly() -> None:
    """Deletes what failed calls have left, once it is no longer referred to."""
    with silence() as reports:
        _collect(reports)


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


@contextlib.contextmanager
def silence() -> Iterator[list[str]]:
    """Keeps off the terminal what Orbax says in its log and, cut off, by `sys.unraisablehook`.

    Yields the reports held back of the latter; everybody else's go where they went before.
    """
    hook, reports = sys.unraisablehook, []

    def of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and "orbax" not in record.getMessage()

    def filtered(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        cut_off = code is not None and "orbax" in code.co_filename
        if cut_off or "Event loop is closed" in str(unraisable.exc_value):
            reports.append(str(unraisable.exc_value))
        else:
            hook(unraisable)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(of_others)
    sys.unraisablehook = filtered
    try:
        yield reports
    finally:
        sys.unraisablehook = hook
        for logger in loggers:
            logger.removeFilter(of_others)
