"""Tables for people: once declared, printed on the terminal and written as Markdown."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from polycom_jax.storage import Place

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


def table_of(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[int] = (0,),
    **look: Any,
) -> Table:
    """A table for the terminal; columns are aligned to the right, but for those in `left`."""
    table = Table(title=title and escape(title), title_justify="left", **look)
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if index in left else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def print_section(console: Console, section: Section) -> None:
    """The table, and its notes below it."""
    print_table(
        console, table_of(section.title, section.columns, section.rows, box=box.SIMPLE_HEAD)
    )
    for note in section.notes:
        console.print(note, markup=False, soft_wrap=True)


def as_markdown(section: Section) -> list[str]:
    """The lines of it, a blank one first."""
    lines = ["", f"## {section.title}", ""]
    lines += markdown_table(section.columns, section.rows)
    for note in section.notes:
        lines += ["", note]
    return lines


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: str = "---"
) -> list[str]:
    """The lines of a table; `numbers` is the rule below all columns but the first."""
    rule = ["---", *[numbers] * (len(columns) - 1)]
    return [
        f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
        for cells in (columns, rule, *rows)
    ]


def opening(title: str, about: Mapping[str, Any]) -> list[str]:
    """The first lines of a report: the command of `about`, then a line for each other fact."""
    facts = [f"- {name}: {value}" for name, value in about.items() if name != "command"]
    return [f"# {title}", "", f"    {about['command']}", "", *facts]


def page(
    title: str,
    about: Mapping[str, Any],
    sections: Iterable[Section],
    figures: Iterable[Place],
    remarks: Iterable[str] = (),
) -> str:
    """A report in Markdown; the figures lie in plots/ beside it, their paths have no suffix."""
    lines = opening(title, about)
    for remark in remarks:
        lines += ["", remark]
    for section in sections:
        lines += as_markdown(section)
    shown = [f"![{figure.stem}](plots/{figure.name}.png)" for figure in figures]
    lines += ["", "## Figures", "", *shown] if shown else []
    return "\n".join(lines) + "\n"


def finite(tree: Any, not_finite: Callable[[float], Any] = lambda number: None) -> Any:
    """The tree with tuples as lists, and `not_finite` of numbers that JSON does not know."""
    if isinstance(tree, Mapping):
        return {name: finite(value, not_finite) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value, not_finite) for value in tree]
    return not_finite(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree
