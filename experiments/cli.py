"""Command lines: tyro flags over a YAML file over defaults, with errors of one line."""

import contextlib
import difflib
import functools
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar

import jax
import tyro

from experiments.paths import expanded, path_names
from polycom_jax._errors import InputError, InputWarning, require
from polycom_jax.hosts import HostsError
from polycom_jax.training.checkpoint import CheckpointWarning, SaveError

C = TypeVar("C")
Aliases = Mapping[str, str]

LESS_MEMORY = (
    "take fewer tokens a step (--batch-size, --seq-len, --optim.accumulation-steps), a smaller"
    " model or --model.remat full."
)

CLOSE = 0.75
"""Least similarity of what is misspelled, as difflib measures it."""

UNITS = ("steps", "every", "size", "dir")
"""Last words of fields that people leave out."""

_python_formats = warnings.formatwarning


OTHER_HOST = 75
"""Exit code where another host is gone or has ended: sysexits.h's "temporary failure", for the same
command on all hosts goes on."""


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
    be written, a closed pipe), `OTHER_HOST` where this host ends because another one did, and 128
    plus the number of a signal that asked for the end. Defects keep their traceback.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        warnings.formatwarning = _format_warning
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL and _in_main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # see experiments/__init__.py
        try:
            code = main(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()  # here a closed pipe can still be told, at the exit it can not
            return code
        except BaseException as error:
            code = _told(error)
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


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def tell(error: BaseException) -> int:
    """Says why a program ends, as `program` does, defects with their traceback: the exit code."""
    code = _told(error)
    if code is None:
        traceback.print_exception(error)
    return 1 if code is None else code


def _told(error: BaseException) -> int | None:
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
            return _end(f"error: {error}", code=OTHER_HOST)
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


@dataclass(frozen=True)
class Setting:
    """One field that was set: its dotted name, and its values as command-line words."""

    name: str
    words: tuple[str, ...]

    def tokens(self) -> list[str]:
        """As tyro reads it; the `=` lets a value begin with a dash."""
        flag = flag_name(self.name)
        return [f"{flag}={self.words[0]}"] if len(self.words) == 1 else [flag, *self.words]


def flag_name(name: str) -> str:
    """`optim.clip_norm` -> `--optim.clip-norm`."""
    return "--" + name.replace("_", "-")


def read_flags(
    argv: Sequence[str], known: Iterable[str], aliases: Aliases, own: Iterable[str] = ()
) -> list[Setting]:
    """Splits a command line into settings, short names replaced by the fields they stand for.

    Raises:
        InputError: an unknown flag (names the nearest), or a word that belongs to none.
    """
    known = set(known)
    settings: list[Setting] = []
    for word in argv:
        if word in ("-h", "--help"):
            settings.append(Setting("help", ()))
        elif word.startswith("--"):
            flag, equals, value = word.partition("=")
            name = flag[2:].replace("-", "_")
            name = aliases.get(name, name)
            if name not in known:
                raise unknown_name("flag", flag, {*map(flag_name, {*known, *aliases}), *own})
            settings.append(Setting(name, (value,) if equals else ()))
        else:
            require(bool(settings), f"{word!r} belongs to no flag; --help lists the flags.")
            last = settings.pop()
            settings.append(Setting(last.name, (*last.words, word)))
    return settings


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a flag or key that there is not, with the one that is meant, if that is clear.

    That is a field of this last name; one that it abbreviates; or one that is spelled almost so. A
    run has some seventy flags: to list them all, or to name one that is far away, does not help.
    """
    names = sorted(sorted(known), key=len, reverse=True)  # of two with one last name, the short one
    last = {_last(other): other for other in names}
    asked = _last(name)
    short = [other for part, other in last.items() if len(asked) > 1 and _abbreviates(asked, part)]
    whole = {other.lstrip("-"): other for other in names}
    near = [whole[n] for n in difflib.get_close_matches(name.lstrip("-"), whole, 1, CLOSE)]
    near += [last[part] for part in difflib.get_close_matches(asked, last, 1, CLOSE)]
    hint = [last[asked]] if asked in last else short[:1] if len(short) == 1 else near
    return InputError(
        f"Unknown {kind} {name!r}. "
        + (f"Did you mean {hint[0]!r}? " if hint else "")
        + "--help lists all."
    )


def _last(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2].replace("-", "_")


def _abbreviates(short: str, name: str) -> bool:
    """`warmup` is short for `warmup_steps`, and `lr` for `peak_learning_rate`."""
    *first, unit = name.split("_")
    initials = "".join(word[:1] for word in (*first, unit))
    if unit in UNITS and short == "_".join(first):
        return True
    return bool(first) and initials.endswith(short)


def parse(default: C, settings: Sequence[Setting], *, prog: str, about: str) -> C:
    """The default with `settings` applied, later ones winning; tyro converts the values.

    A bool may stand alone for True: `--greedy`. Paths are `expanded`.

    Raises:
        InputError: a value that its field's type, or the config it belongs to, refuses.
        SystemExit: after printing the help, where `--help` is among the settings.
    """
    values, paths = flatten(default), path_names(type(default))
    settings = [_prepared(setting, values.get(setting.name), paths) for setting in settings]
    with _one_line_errors():
        return tyro.cli(
            type(default),
            default=default,
            args=[token for setting in settings for token in setting.tokens()],
            prog=prog,
            # tyro joins a line that begins with a letter to the one before it, an entry of a list.
            description=re.sub(r"(\n  .*)\n(?=\w)", r"\1\n\n", about),
            config=(tyro.conf.FlagConversionOff,),
        )


def _prepared(setting: Setting, default: Any, paths: frozenset[str]) -> Setting:
    words, flag = setting.words, flag_name(setting.name)
    if not words and isinstance(default, bool):
        words = ("True",)
    require(
        len(words) <= 1 or isinstance(default, tuple),
        f"{flag} takes one value, not the {len(words)} words {' '.join(map(repr, words))}; quote a"
        " value with spaces, and a glob, which the shell would take apart.",
    )
    if setting.name in paths:
        words = tuple(expanded(flag, word) for word in words)
    return Setting(setting.name, words)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns tyro's boxed message and exit into an `InputError` of the message alone."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(_boxed(text.getvalue())) from end


def _boxed(text: str) -> str:
    """The message in tyro's box: between frame and rule, or, without a frame, between two rules."""
    rows = [line.strip("│ ") for line in text.splitlines()]
    rules = [i for i, row in enumerate(rows) if (row and not row.strip("╭─╮╰╯-")) or row[:1] == "╭"]
    message = " ".join(rows[rules[0] + 1 : rules[1]]) if len(rules) > 1 else text
    where, colon, what = message.removeprefix("Error parsing ").partition(": ")
    # What a config refuses names the field itself; a value of the wrong kind needs the flag.
    return (
        what if colon and " " not in where and not where.startswith("--") else where + colon + what
    )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field name -> value, for every leaf of a tree of dataclasses."""
    leaves: dict[str, Any] = {}
    for field in fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        leaves |= flatten(value, f"{name}.") if is_dataclass(value) else {name: value}
    return leaves


def split_flags(
    argv: Sequence[str], names: Sequence[str], paths: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The flags that are a program's own, and the words for `from_command`.

    A first word that is no flag names a config file.

    Args:
        argv: the command line.
        names: of the flags.
        paths: those of them that take a path, which is `expanded`.

    Raises:
        InputError: one of them without a value.
    """
    words, own = list(argv), {}
    if words and not words[0].startswith("-"):
        words.insert(0, "--config")
    for name in names:
        words = [part for word in words for part in _split(word, name)]
        while name in words:
            at = words.index(name)
            require(at + 1 < len(words), f"{name} takes a value.")
            own[name] = expanded(name, words[at + 1]) if name in paths else words[at + 1]
            del words[at : at + 2]
    return own, words


def _split(word: str, name: str) -> list[str]:
    return word.split("=", 1) if word.startswith(f"{name}=") else [word]


def with_flags(argv: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """The command line with these flags in place of what it had of them."""
    _, rest = split_flags(argv, tuple(flags))
    return [*rest, *(word for name, value in flags.items() for word in (name, str(value)))]
