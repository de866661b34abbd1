"""Tables for people: once declared, printed on the terminal and written as Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

FILE_WIDTH = 132
"""Columns of tables, at least, where the output is no terminal: a file has no width to fold to."""

LONGEST_LINE = 10_000
"""Columns that no table gets to."""


@dataclass(frozen=True)
class Section:
    """A table with a heading, and lines that say what its columns are."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def print_table(console: Console, table: Table) -> None:
    """The table with nothing cut off: on a terminal long cells fold, in a file lines are long."""
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", False
    if console.is_terminal:
        console.print(table)
        return
    options = console.options.update(max_width=LONGEST_LINE)
    width = max(FILE_WIDTH, Measurement.get(console, options, table).maximum)
    # rich never prints wider than its console
    type(console)(file=console.file, width=width, quiet=console.quiet).print(table)


def room(console: Console) -> int:
    """Columns that a table may take."""
    return console.width if console.is_terminal else LONGEST_LINE


def duration(seconds: float) -> str:
    """A time in the largest unit that there is one of: "3.2 days", "5.1 hours", "40.0 seconds"."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def print_section(console: Console, section: Section) -> None:
    """The table, and its notes below it."""
    table = Table(title=escape(section.title), title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(section.columns):
        table.add_column(escape(column), justify="left" if index == 0 else "right")
    for row in section.rows:
        table.add_row(*map(escape, row))
    print_table(console, table)
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
