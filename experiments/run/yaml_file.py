"""Config files: YAML whose values are read as they are written, as the words of a command line are.

What a word is of, its field says: YAML's own rules would make a boolean of `no` where text is
wanted, a number of `12:30`, and eight of `010`.
"""

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from experiments.terminal.flags import Aliases, Setting, unknown_name
from polycom_jax import storage
from polycom_jax._errors import InputError, require

MOST_BYTES = 2**20
"""Longest file that is read as a config."""

RECORD = "record"
"""Section of a run's own config.yaml that says how it came about; it sets nothing."""

FILLED_IN = "filled_in"
"""The fields in it that were not given: they follow from the data and the run's length."""

_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {word: name for name in ("True", "False") for word in (name, name.lower(), name.upper())}
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")


class _Loader(yaml.BaseLoader):
    """Nodes alone: no tags, which name types of Python, and no aliases.

    With aliases a file of a few lines spells out millions of keys, or one that holds itself.
    """

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="it has an alias (*)", problem_mark=event.start_mark)
        if (tag := getattr(event, "tag", None)) is not None:
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(
                problem=f"it has a tag ({tag}), and values are text, numbers and lists of them",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="it has a key that is no word", problem_mark=key.start_mark
                )
            if key.value in names:
                raise yaml.MarkedYAMLError(
                    problem=f"it has the key {key.value!r} twice", problem_mark=key.start_mark
                )
            names.add(key.value)
        return node


def read_yaml(
    path: os.PathLike[str],
    base: Mapping[str, Any],
    aliases: Aliases,
    *,
    lists: Container[str] = (),
    keep_filled_in: bool = False,
) -> list[Setting]:
    """Reads the settings of a YAML file with the nested shape of the config.

    Args:
        path: the file.
        base: dotted name -> default value of every field that may be set.
        aliases: short name -> dotted name.
        lists: those that take a list, though their default is one value.
        keep_filled_in: also read the settings of a run's config.yaml that were not given. They
            follow from its data and length, so another run fills them in anew.

    Raises:
        InputError: no such file, no YAML, an unknown key (names the nearest), a key twice, a
            section without keys.
    """
    root = _compose(path)
    settings: dict[str, Setting] = {}
    record: Any = {}
    for key, node in _leaves(root):
        if key == RECORD:
            record = _as_text(node)
            continue
        name = aliases.get(key, key)
        below = [name for name in base if name.startswith(f"{key}.")]
        require(
            not below or not _is_empty(node),
            f"{path}: the section `{key}:` is empty; take it out, or take the # from its keys.",
        )
        if name not in base:
            raise _unknown_key(path, key, below, {*base, *aliases})
        require(name not in settings, f"{path} sets {name} twice.")
        settings[name] = Setting(name, _words(f"{path}: {key}", node, base[name], name in lists))
    if isinstance(record, dict) and not keep_filled_in:
        vocab_size = settings.get("model.vocab_size", Setting("", ("",))).words[0]
        for name in filled_in(record, vocab_size):
            settings.pop(name, None)
    return list(settings.values())


def filled_in(record: Mapping[str, Any], vocab_size: object) -> list[str]:
    """The fields that were not given, by a record and the `model.vocab_size` above it."""
    if FILLED_IN in record:
        named = record[FILLED_IN]
        return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    # Runs of earlier versions: the end of the schedule stands in their record alone.
    asked = record.get("vocab_size_asked", vocab_size)
    names = ["model.vocab_size"] if str(asked) != str(vocab_size) else []
    return [*names, "optim.decay_steps"] if "decay_steps" in record else names


def _compose(path: os.PathLike[str]) -> MappingNode | None:
    try:
        root = yaml.compose(_text(path), _Loader)
    except InputError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} cannot be read: {error}.") from error
    # PyYAML lets go through whatever a malformed scalar makes it raise.
    except Exception as error:
        raise InputError(f"--config {path} is not valid YAML: {in_a_line(error)}.") from error
    if isinstance(root, ScalarNode) and root.value == "" and root.style is None:
        return None
    if root is not None and not isinstance(root, MappingNode):
        kind = "list" if isinstance(root, SequenceNode) else "text"
        raise InputError(f"--config {path} must hold sections such as `optim:`, not a {kind}.")
    return root


def in_a_line(error: Exception) -> str:
    """What a YAML parser says over several lines, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
    context, start = getattr(error, "context", None), getattr(error, "context_mark", None)
    begun = f" from line {start.line + 1} on" if start else ""
    return f"{problem} in line {mark.line + 1}" + (f" ({context}{begun})" if context else "")


def _text(path: os.PathLike[str]) -> str:
    require("\0" not in str(path), f"--config {str(path)!r} is no name of a file.")
    raw = storage.read(path, size=MOST_BYTES + 1)
    require(
        len(raw) <= MOST_BYTES, f"--config {path} is longer than {MOST_BYTES} bytes: no config is."
    )
    return raw.decode("utf-8")


def _leaves(node: MappingNode | None, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Dotted key and value, for whatever is not a section with keys of its own."""
    for key, value in node.value if node else ():
        name = f"{prefix}{key.value}"
        if isinstance(value, MappingNode) and value.value and name != RECORD:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _unknown_key(
    path: os.PathLike[str], key: str, below: Sequence[str], known: Iterable[str]
) -> InputError:
    if not below:
        return unknown_name(f"key in {path}:", key, known)
    return InputError(
        f"Unknown key in {path}: {key!r} is a section, which takes no value but keys such as"
        f" `{below[0].removeprefix(f'{key}.')}:`."
    )


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in _NULLS


def _is_empty(node: Node) -> bool:
    return _is_null(node) or (isinstance(node, MappingNode) and not node.value)


def _words(where: str, node: Node, default: Any, many: bool = False) -> tuple[str, ...]:
    """A value as words of a command line; `default` tells what kind of field takes them.

    It may be a list where that is a tuple, or with `many`.
    """
    if isinstance(node, MappingNode):
        raise InputError(f"{where} takes a value, not a section.")
    if isinstance(node, SequenceNode):
        require(
            many or isinstance(default, tuple),
            f"{where} takes one value, not the list [{', '.join(map(str, _as_text(node)))}].",
        )
        return tuple(word for one in node.value for word in _words(where, one, ""))
    assert isinstance(node, ScalarNode)  # there is no other kind
    word = str(node.value)
    if _is_null(node):
        # Elsewhere the field's type tells; in a text field, None would be the text "None".
        require(
            not isinstance(default, str | tuple),
            f"{where} is empty; leave the key out to keep its default"
            + (", or write [] for none." if isinstance(default, tuple) else "."),
        )
        return ("None",)
    if node.style is not None:
        require(
            default is not None or word != "None",
            f"{where}: the text 'None' cannot be told from none here; a path may be ./None.",
        )
    elif isinstance(default, bool):
        word = _BOOLS.get(word, word)
    elif isinstance(default, float) and (found := _NOT_FINITE.fullmatch(word)):
        word = f"{found[1]}{found[2].lower()}"
    return (word,)


def _as_text(node: Node) -> Any:
    """Dictionaries and lists of the text that stands there."""
    if isinstance(node, MappingNode):
        return {key.value: _as_text(value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [_as_text(one) for one in node.value]
    return node.value
