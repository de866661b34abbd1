"""Standard streams that are closed, and ones that cannot write every letter."""

import io
import os
import sys


def open_streams() -> None:
    """Opens the null device where stdin, stdout or stderr is closed.

    Otherwise the next file that is opened takes its number, and what libraries print goes into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w"), "utf-8"))


def write_any_letter() -> None:
    """Lets stdout and stderr write letters that their encoding lacks as escapes, not as errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
