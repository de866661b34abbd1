"""Tables for people: nothing is cut off."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from experiments.evaluate.__main__ import EvaluateConfig, Measure, table
from experiments.terminal.tables import (
    Section,
    duration,
    finite,
    markdown_table,
    page,
    print_section,
    print_table,
    table_of,
)

LONG = "/a/very/long/path/to/texts/" + "of/many/kinds/" * 12
NAMES = (f"{LONG}first [v1].jsonl", f"{LONG}second [v2].jsonl", f"{LONG}second [v3].jsonl")


def printed(drawn: Table | Section, *, terminal: bool = False, width: int = 80) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    if isinstance(drawn, Section):
        print_section(console, drawn)
    else:
        print_table(console, drawn)
    return file.getvalue()


def evaluated() -> Table:
    measure = Measure.__new__(Measure)
    measure.seq_len = measure.stride = 8
    numbers = {"documents": 1, "bytes": 2, "tokens": 3.0, "loss": 1.25, "bits_per_byte": 1.5}
    rows = [{"data": name, **numbers} for name in NAMES]
    return table(EvaluateConfig(), measure, rows)


def test_in_a_file_every_text_is_told_from_the_others():
    lines = printed(evaluated()).splitlines()
    for name in NAMES:
        assert sum(name in line for line in lines) == 1
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_what_is_too_long_folds(width: int):
    shown = printed(evaluated(), terminal=True, width=width)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for sign in ("v1", "v2", "v3"):
        assert sign in shown


def test_a_table_of_many_columns_is_whole():
    columns = tuple(f"a contestant of a long name [{i}]" for i in range(12))
    rows = (tuple(f"{i / 7:.6f} of something" for i in range(12)),)
    for terminal in (False, True):
        shown = printed(Section("a [title]", columns, rows, ("a note",)), terminal=terminal)
        assert "…" not in shown
        assert "a [title]" in shown
    shown = printed(Section("t", columns, rows))
    for text in (*columns, *rows[0]):
        assert text in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 seconds"), (59, "59.0 seconds"), (90, "1.5 minutes"), (9000, "2.5 hours")],
)
def test_times_are_told_in_their_own_unit(seconds: float, text: str):
    assert duration(seconds) == text
    assert duration(86_400 * 1234.5) == "1,234.5 days"


def test_a_page_is_command_facts_remarks_tables_and_figures():
    section = Section("Losses", ("arm", "loss"), (("a|b", "1.5"),), ("nats",))
    about = {"command": "python -m p", "jax": "0.12"}
    text = page("Study", about, [section], [Path("w/plots/loss")], ["Mind: two steps."])
    assert text.splitlines() == [
        *("# Study", "", "    python -m p", "", "- jax: 0.12", "", "Mind: two steps."),
        *("", "## Losses", "", "| arm | loss |", "| --- | --- |", "| a/b | 1.5 |", "", "nats"),
        *("", "## Figures", "", "![loss](plots/loss.png)"),
    ]
    assert markdown_table(("a", "b"), [], numbers="---:")[1] == "| --- | ---: |"


def test_columns_stand_at_the_right_but_for_those_that_are_named():
    drawn = table_of("[t]", ("a", "b", "c"), [("[x]", "1", "y")], left=(0, 2))
    assert [column.justify for column in drawn.columns] == ["left", "right", "left"]
    assert "[x]" in printed(drawn)
    assert "[t]" in printed(drawn)


def test_what_json_does_not_know_is_null_or_what_is_asked_for():
    tree = {"a": (1.0, math.inf), "b": [{"c": math.nan}]}
    assert finite(tree) == {"a": [1.0, None], "b": [{"c": None}]}
    assert finite(tree, str) == {"a": [1.0, "inf"], "b": [{"c": "nan"}]}
