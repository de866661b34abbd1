"""Command lines: tyro flags over a YAML file over defaults, with errors of one line."""

import contextlib
import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from typing import Any, TypeVar

import tyro

from experiments.terminal.paths import expanded, path_names
from polycom_jax._errors import InputError, require

C = TypeVar("C")
Aliases = Mapping[str, str]

CLOSE = 0.75
"""Least similarity of what is misspelled, as difflib measures it."""

UNITS = ("steps", "every", "size", "dir")
"""Last words of fields that people leave out."""


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
    if type(default) is int and words and (number := _as_whole(words[0])) is not None:
        raise InputError(f"{flag} takes a whole number, not {words[0]!r}; write {number}.")
    return Setting(setting.name, words)


def _as_whole(word: str) -> int | None:
    """The integer that a number written otherwise (1e3, 1000.0) is; None of any other word."""
    if not re.fullmatch(r"[-+]?[0-9]+(?=[.eE])(\.[0-9]*)?([eE]\+?[0-9]{1,2})?", word):
        return None
    number = Decimal(word)
    return int(number) if number == int(number) else None


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
