"""Tables for people: once declared, printed on the terminal and written as Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FILE_WIDTH = 132
"""Columns of tables where the output is no terminal: a file has no width to fold them to."""


@dataclass(frozen=True)
class Section:
    """A table with a heading, and lines that say what its columns are."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def print_section(console: Console, section: Section) -> None:
    """The table, and its notes below it."""
    table = Table(title=escape(section.title), title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(section.columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*map(escape, row))
    if console.is_terminal:
        console.print(table)
    else:  # rich never prints wider than its console
        Console(file=console.file, width=FILE_WIDTH, quiet=console.quiet).print(table)
    for note in section.notes:
        console.print(note, markup=False, soft_wrap=True)


def as_markdown(section: Section) -> list[str]:
    """The lines of it, a blank one first."""
    lines = ["", f"## {section.title}", ""]
    lines += [_row(section.columns), _row(["---"] * len(section.columns))]
    lines += [_row(row) for row in section.rows]
    for note in section.notes:
        lines += ["", note]
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def finite(tree: Any) -> Any:
    """The tree with tuples as lists, and None for numbers that JSON does not know."""
    if isinstance(tree, dict):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
