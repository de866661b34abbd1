"""How a program ends: exit codes, and one line on stderr where no defect of ours is met."""

import contextlib
import functools
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from polycom_jax._errors import InputError, InputWarning
from polycom_jax.hosts import HostsError
from polycom_jax.training.checkpoint import CheckpointWarning, SaveError

LESS_MEMORY = (
    "take fewer tokens a step (--batch-size, --seq-len, --optim.accumulation-steps), a smaller"
    " model or --model.remat full."
)

_python_formats = warnings.formatwarning


OTHER_PROCESS = 75
"""Exit code where another process has ended or does not come: sysexits.h's "temporary failure", for
the same command goes on."""


class Stop(Exception):
    """The end of a program before its task is done, by no defect: a message and an exit code."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class Program(Protocol):
    """A command line to an exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Runs with these words, or with the process's own."""
        ...


def program(main: Callable[[Sequence[str]], int]) -> Program:
    """Makes `main(argv)` a program that ends in one line on stderr where no defect of ours is met.

    Exit codes: 2 for bad input, 1 for what the machine refuses (a full disk, a file that may not
    be written, a closed pipe), `OTHER_PROCESS` where this process ends for another one, and 128
    plus the number of a signal that asked for the end. Defects keep their traceback.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        warnings.formatwarning = _format_warning
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # see experiments/__init__.py
        try:
            code = main(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()  # a closed pipe can still be reported here, at exit it cannot
            return code
        except BaseException as error:
            code = _print_line(error)
            if code is None:
                raise
            return code

    return run


def _format_warning(
    message: Warning | str, category: type[Warning], name: str, number: int, line: str | None = None
) -> str:
    """A warning of ours for people, in a line; others with the place where they were given."""
    if issubclass(category, CheckpointWarning | InputWarning):
        return f"warning: {' '.join(str(message).split())}\n"
    return _python_formats(message, category, name, number, line)


def report_error(error: BaseException) -> int:
    """Prints an error as `program` does, defects with a traceback, and returns the exit code."""
    code = _print_line(error)
    if code is None:
        traceback.print_exception(error)
    return 1 if code is None else code


def _print_line(error: BaseException) -> int | None:
    """The exit code, once the one line is on stderr; None: a defect, nothing is said."""
    match error:
        case InputError():
            return _end(f"error: {error}", code=2)
        case Stop():
            return _end(f"ended: {error}", code=error.code)
        case BrokenPipeError():
            discard_stdout()
            return _end("error: stdout was closed before all was written.", code=1)
        case HostsError():
            return _end(f"error: {error}", code=OTHER_PROCESS)
        case SaveError() | OSError():
            return _end(f"error: {error}", code=1)
        case MemoryError() | jax.errors.JaxRuntimeError() if _is_lack_of_memory(error):
            return _end(f"error: not enough memory ({error}); {LESS_MEMORY}", code=1)
        case KeyboardInterrupt():
            return _end("interrupted", code=130)
        case SystemExit():  # tyro, after --help
            return error.code if isinstance(error.code, int) else 1
    return None


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED")


def _end(message: str, *, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr may be closed, too
        # Where a word of the command line was no text, so that it can be printed.
        line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
        print(line, file=sys.stderr)
    return code


def discard_stdout() -> None:
    """Sends what is still written to stdout nowhere: its reader is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
