"""Pieces of Markdown reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.terminal.tables import markdown_table


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table; the columns are the first row's."""
    if not rows:
        return ["(nothing)"]
    columns = list(rows[0])
    return markdown_table(columns, [[number(row.get(c, "")) for c in columns] for row in rows])


def number(value: Any) -> str:
    """Three digits of a float; anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def ranged(value: float, low: float, high: float) -> str:
    """A value with its interval."""
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def facts(about: Mapping[str, Any]) -> list[str]:
    """The command on a line of its own, then versions and machine."""
    rest = ", ".join(f"{name} {value}" for name, value in about.items() if name != "command")
    return [f"    {about['command']}", "", rest]
