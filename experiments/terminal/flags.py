"""Command lines: tyro's flags over a YAML file over defaults, with errors of one line.

tyro converts values, checks them and prints the help. Words are grouped before that, because it
does not say which fields somebody has set, and a file's settings go between defaults and flags.
"""

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro import _errors  # its hook for errors is in no public module
from tyro.conf import Positional, Suppress, arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from experiments.terminal.paths import expanded, is_path, is_place
from polycom_jax._errors import InputError, require

C = TypeVar("C")
Aliases = Mapping[str, str]

NO_PREFIX: Any = arg(name="")
"""Marks a section whose flags are named as if they were the program's own."""

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


@dataclass(frozen=True)
class Leaf:
    """A field that is no section: the dataclass it is of, its annotation, its value."""

    owner: type
    hint: Any
    value: Any


def leaves(config: Any, prefix: str = "") -> dict[str, Leaf]:
    """Dotted name -> field, for every leaf of a tree of dataclasses."""
    found: dict[str, Leaf] = {}
    hints = get_type_hints(type(config), include_extras=True)
    for each in fields(config):
        name, value, hint = prefix + each.name, getattr(config, each.name), hints[each.name]
        inner = prefix if _has(hint, NO_PREFIX) else f"{name}."
        leaf = {name: Leaf(type(config), hint, value)}
        found |= leaves(value, inner) if is_dataclass(value) else leaf
    return found


def flatten(config: Any) -> dict[str, Any]:
    """Dotted field name -> value, for every leaf of a tree of dataclasses."""
    return {name: leaf.value for name, leaf in leaves(config).items()}


def flag_name(name: str) -> str:
    """`optim.clip_norm` -> `--optim.clip-norm`."""
    return "--" + name.replace("_", "-")


def as_words(fields: Mapping[str, Any]) -> list[str]:
    """Words of a command line that set these fields: dotted name -> value."""
    many = {name: each if isinstance(each, tuple) else (each,) for name, each in fields.items()}
    return [word for name, each in many.items() for word in (flag_name(name), *map(str, each))]


def _has(hint: Any, marker: Any) -> bool:
    return marker in getattr(hint, "__metadata__", ())


@dataclass(frozen=True)
class CommandLine:
    """What a program takes besides the fields of its config.

    One of these may be `Positional`: its words stand first, without a flag.

    Attributes:
        program: as in `python -m experiments.PROGRAM`.
        about: what it does.
        short: short name -> field; the help shows both.
        old: name in an earlier release -> field; the help does not show it.
        refused: fields that are none of this program's; the help does not show them.
        why_refused: what to say where one is set.
        lists: heading -> names; `--list` prints them.
    """

    program: str = ""
    about: str = ""
    short: Aliases = field(default_factory=dict[str, str])
    old: Aliases = field(default_factory=dict[str, str])
    refused: frozenset[str] = frozenset()
    why_refused: str = ""
    lists: Mapping[str, Iterable[str]] = field(default_factory=dict[str, Iterable[str]])

    def __call__(self, default: C, argv: Sequence[str]) -> C:
        """The default with the flags of a command line applied; see `read` and `parse`."""
        return self.parse(default, self.read(default, argv))

    def read(self, default: Any, argv: Sequence[str]) -> list[Setting]:
        """Groups a command line into settings; a short or old name gives the field it stands for.

        Raises:
            InputError: an unknown flag (names the nearest), or a word that belongs to none.
            SystemExit: after printing the names, where `--list` is among the words.
        """
        base = leaves(default)
        if self.lists and "--list" in argv:
            for heading, names in self.lists.items():
                print(f"{heading}: {' '.join(names)}")
            raise SystemExit(0)
        settings: list[Setting] = []
        for word in argv:
            if word in ("-h", "--help"):
                settings.append(Setting("help", ()))
            elif word.startswith("--"):
                flag, equals, value = word.partition("=")
                settings.append(Setting(self._field(flag, base), (value,) if equals else ()))
            elif settings and settings[-1].name == "help":
                continue  # the help is the same, whatever stands behind it
            else:
                last = settings.pop() if settings else Setting(_positional(base) or "", ())
                require(last.name != "", f"{word!r} belongs to no flag; --help lists the flags.")
                settings.append(Setting(last.name, (*last.words, word)))
        return settings

    def _field(self, flag: str, base: Mapping[str, Leaf]) -> str:
        own = {name: name for name in base if name != _positional(base)}
        fields = {**self.short, **self.old, **own}
        name = flag[2:].replace("-", "_")
        if name not in fields:
            raise unknown_name("flag", flag, map(flag_name, {*own, *self.short}))
        return fields[name]

    def parse(self, default: C, settings: Sequence[Setting]) -> C:
        """The default with `settings` applied, later ones winning; tyro converts the values.

        A bool may stand alone for True: `--greedy`. Paths are `expanded`.

        Raises:
            InputError: a value that its field's type, or the config it belongs to, refuses.
            SystemExit: after printing the help, where `--help` is among the settings.
        """
        base = leaves(default)
        settings = [_prepared(setting, base.get(setting.name)) for setting in settings]
        taken = [each.name for each in settings if each.name in self.refused]
        require(not taken, f"{', '.join(dict.fromkeys(taken))}: {self.why_refused}")
        first = _positional(base)
        words = [each.words for each in settings if each.name == first][-1:]
        require(all(words), f"{first} takes a value.")
        tokens = [word for each in settings if each.name != first for word in each.tokens()]
        listed = ", ".join(self.lists)
        with _errors.on_parse_error(_refuse):
            return tyro.cli(
                type(default),
                default=default,
                args=[*tokens, "--", *words[0]] if words else tokens,
                prog=f"python -m experiments.{self.program}",
                description=self.about + (f" --list prints {listed}." if listed else ""),
                config=(tyro.conf.FlagConversionOff,),
                registry=self._registry(base),
            )

    def _registry(self, base: Mapping[str, Leaf]) -> ConstructorRegistry:
        """Gives tyro short names and what to hide, for classes that do not know of tyro."""
        marks: dict[tuple[type, str], Any] = {}
        for alias, name in self.short.items():
            if name in base and alias not in base and "." not in alias:
                short = (flag_name(alias),)
                marks[_place(base, name)] = arg(aliases=short, metavar=_metavar(base[name]))
        marks |= {_place(base, name): Suppress for name in self.refused & {*base}}
        for name, leaf in base.items():
            if _as_text(leaf.hint) is not leaf.hint:
                marks.setdefault(_place(base, name), None)
        registry, owners = ConstructorRegistry(), {owner for owner, _ in marks}

        @registry.struct_rule
        def _(info: StructTypeInfo) -> StructConstructorSpec | None:
            if info.type not in owners:
                return None
            owners.remove(info.type)  # so that this gives tyro's own
            spec: Any = ConstructorRegistry.get_struct_spec(info)
            owners.add(info.type)
            marked_as = {f.name: marks.get((info.type, f.name)) for f in spec.fields}
            types = [Annotated[_as_text(f.type), marked_as[f.name]] for f in spec.fields]
            marked = [replace(f, type=t) for f, t in zip(spec.fields, types, strict=True)]
            return replace(spec, fields=tuple(marked))

        return registry


def lists(base: Mapping[str, Leaf]) -> frozenset[str]:
    """The fields that take any number of values."""
    return frozenset(name for name, leaf in base.items() if _takes_many(leaf.hint))


def _takes_many(hint: Any) -> bool:
    return get_origin(hint) is tuple or any(map(_takes_many, get_args(hint)))


def _metavar(leaf: Leaf) -> str | None:
    """What the help shows of a field that takes one value or several; else what tyro makes."""
    return "STR [STR ...]" if _takes_many(leaf.hint) and isinstance(leaf.value, str) else None


def _as_text(hint: Any) -> Any:
    """Text alone where a field takes that or an object, which no word of a command line is."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return str if str in options and any(map(is_dataclass, options)) else hint


def _place(base: Mapping[str, Leaf], name: str) -> tuple[type, str]:
    return base[name].owner, name.rpartition(".")[2]


def _positional(base: Mapping[str, Leaf]) -> str | None:
    return next((name for name, leaf in base.items() if _has(leaf.hint, Positional)), None)


def _shown(name: str, leaf: Leaf) -> str:
    """A field as the help names it."""
    metavars = (getattr(each, "metavar", None) for each in getattr(leaf.hint, "__metadata__", ()))
    positional = _has(leaf.hint, Positional)
    return next(filter(None, metavars), name).strip("[]") if positional else flag_name(name)


def _prepared(setting: Setting, leaf: Leaf | None) -> Setting:
    """The setting as tyro takes it: one word where it wants one, True spelt out, paths expanded."""
    if leaf is None:  # --help
        return setting
    words, flag = setting.words, _shown(setting.name, leaf)
    if not words and isinstance(leaf.value, bool):
        words = ("True",)
    require(
        len(words) <= 1 or _takes_many(leaf.hint),
        f"{flag} takes one value, not the {len(words)} words {' '.join(map(repr, words))}; quote a"
        " value with spaces, and a glob, which the shell would take apart.",
    )
    if is_path(leaf.hint):
        words = tuple(expanded(flag, word, remote=is_place(leaf.hint)) for word in words)
    if type(leaf.value) is int and words and (number := _as_whole(words[0])) is not None:
        raise InputError(f"{flag} takes a whole number, not {words[0]!r}; write {number}.")
    if isinstance(leaf.value, float):
        require(
            not any(map(_overflows, words)),
            f"{flag}={' '.join(words)} is larger than a float can be; infinity is written inf.",
        )
    return Setting(setting.name, words)


def _overflows(word: str) -> bool:
    """Whether a finite number was written, and float makes infinity of it."""
    with contextlib.suppress(ValueError):
        return math.isinf(float(word)) and "inf" not in word.lower()
    return False


def _as_whole(word: str) -> int | None:
    """The integer that a number written otherwise (1e3, 1000.0) is; None of any other word."""
    if not re.fullmatch(r"[-+]?[0-9]+(?=[.eE])(\.[0-9]*)?([eE]\+?[0-9]{1,2})?", word):
        return None
    number = Decimal(word)
    return int(number) if number == int(number) else None


def _refuse(event: _errors.ParseErrorEvent) -> None:
    """tyro's error as one line; what a config refuses names the field itself."""
    argument = getattr(event, "argument", None)
    flag = max(argument.lowered.name_or_flags, key=len) if argument else ""
    match event:
        case _errors.InstantiationFailure(message=message):
            expected = f" (expected {argument.lowered.metavar})" if argument else ""
            raise InputError(f"{flag}: {message}{expected}" if flag else message)
        case _errors.InvalidChoice(value=value, choices=choices):
            # Of a union, tyro gives them in an order of its own each time.
            order = re.findall(r"[\w.-]+", argument.lowered.metavar or "") if argument else []
            rank = {choice: index for index, choice in enumerate(order)}
            choices = sorted(choices, key=lambda one: (one == "None", rank.get(one, len(rank))))
            near = difflib.get_close_matches(value, choices, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{flag}: got {value!r}, expected one of {', '.join(choices)}.{hint}")
        case _errors.BadValue():
            raise InputError(f"{flag} takes a value.")
        case _:
            raise InputError(str(event))


def replaced(argv: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The command line with these values of flags in place of its own; None removes a flag."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag not in values:
            kept.append(word)
        elif not equals:
            next(words)
    given = {flag: str(value) for flag, value in values.items() if value is not None}
    return [*kept, *(word for pair in given.items() for word in pair)]


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
    meant = f" Did you mean {hint[0]!r}?" if hint else ""
    return InputError(f"Unknown {kind} {name!r}.{meant} --help lists all.")


def _last(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2].replace("-", "_")


def _abbreviates(short: str, name: str) -> bool:
    """`warmup` is short for `warmup_steps`, and `lr` for `peak_learning_rate`."""
    *first, unit = name.split("_")
    initials = "".join(word[:1] for word in (*first, unit))
    if unit in UNITS and short == "_".join(first):
        return True
    return bool(first) and initials.endswith(short)
