"""Files of a run, each written atomically: as a whole, or not at all."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.terminal.paths import naming, try_file
from experiments.terminal.tables import finite
from polycom_jax import staging, storage
from polycom_jax._files import in_made

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

STDOUT = "-"
"""What `--json` takes for stdout; people's text is on stderr then."""


def try_json(target: str | None) -> None:
    """Raises `InputError` unless what `--json` names can be written."""
    if target not in (None, STDOUT):
        try_file("--json", Path(target))


def write_json(
    target: str | storage.Place | None,
    record: Any,
    *,
    indent: int | None = 1,
    not_finite: Callable[[float], Any] = lambda number: None,
) -> None:
    """Writes a record to a file, or to stdout where that is what `--json` names.

    Args:
        target: the file; None: nothing is written.
        record: JSON-able, tuples included.
        indent: spaces a level; None: all in one line.
        not_finite: what stands for numbers that JSON does not know.
    """
    text = json_text(record, indent=indent, not_finite=not_finite)
    if target == STDOUT:
        print(text, end="")
    elif target is not None:
        write_text(Path(target) if isinstance(target, str) else target, text)


def json_text(
    record: Any,
    *,
    indent: int | None = 1,
    not_finite: Callable[[float], Any] = lambda number: None,
) -> str:
    """What `write_json` writes."""
    return json.dumps(finite(record, not_finite), indent=indent) + "\n"


def from_record(cls: type[Record], record: Mapping[str, Any]) -> Record:
    """A dataclass from JSON, which has null for what is no number, and lists for tuples.

    Raises:
        KeyError: a field without a default is missing.
    """

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(number, value))
        return math.nan if value is None else value

    needed = [each.name for each in fields(cls) if each.default is MISSING]
    others = [each.name for each in fields(cls) if each.name not in needed]
    given = {name: number(record[name]) for name in needed}
    return cls(**given, **{name: record[name] for name in others if name in record})


def hand_over(target: str | None, written: storage.Place) -> None:
    """`write_json` of a result that a program has in its folder of results already."""
    if target is not None:
        write_json(target, json.loads(storage.read(written)))


def write_text(path: storage.Place, text: str) -> None:
    """Writes a file atomically, and the folders above it; a pipe or device directly."""
    if storage.is_remote(path):
        storage.write(path, text.encode())
        return
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with atomic(path) as file:
        file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic(path: storage.Place) -> Iterator[Path]:
    """A file to write, which then replaces `path` atomically.

    Folders above it are made.
    """
    if storage.is_remote(path):
        with staging.Staged(path.parent) as staged:
            yield staged.local / path.name
        return
    temporary = storage.temporary_name(Path(path))  # others may write the same file
    try:
        with naming(path):
            in_made(temporary.parent, temporary.touch)
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
