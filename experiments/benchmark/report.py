"""Results as tables on the terminal, as JSON, as Markdown, and as plots; ratios first."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from experiments.benchmark.results import Result, Row, Spread
from experiments.benchmark.side_by_side import side_by_side
from experiments.run import plots
from experiments.run.files import write_json, write_text
from experiments.run.provenance import circumstances, versions
from experiments.terminal.tables import as_markdown, markdown_table, opening, table_of


@dataclass(frozen=True)
class Report:
    """The files of a benchmark.

    Attributes:
        out: their folder.
        command: that the numbers come from.
        settings: what else was set for them, by name.
    """

    out: Path
    command: str
    settings: Mapping[str, str]

    @property
    def numbers(self) -> Path:
        """Everything, as JSON: every round of every contestant."""
        return self.out / "results.json"

    @property
    def tables(self) -> Path:
        """The tables in Markdown."""
        return self.out / "results.md"

    @property
    def plots(self) -> Path:
        """The folder of figures."""
        return self.out / "plots"

    def write(self, results: Sequence[Result]) -> None:
        """Writes numbers and tables; files that are there are replaced atomically."""
        about = {"command": self.command, **versions(), **circumstances(), **self.settings}
        write_json(self.numbers, {"about": about, "results": [asdict(each) for each in results]})
        write_text(self.tables, markdown(about, results))

    def draw(self, result: Result) -> None:
        """Bars of the ratios to the first reference, with their spread; nothing without one."""
        if len(result.rows) < 2 or not result.references:
            return
        first = result.references[0]
        ratios = {row.name: row.ratios[first] for row in result.rows if first in row.ratios}
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{result.suite}-{result.case}").strip("-")
        plots.plot_ratios(
            self.plots / name,
            {name: (ratio.low, ratio.median, ratio.high) for name, ratio in ratios.items()},
            title=f"{result.suite}: {result.case}",
            label=f"time / {first}'s",
        )


def tables(result: Result, width: int) -> list[Table]:
    """One row a contestant: its time as a multiple of each reference's, then all the rest.

    Columns that do not fit into `width` go to a further table, with the contestants again. The
    spread of what has none here is in the Markdown table.
    """
    first, *others = list(
        zip(_headings(result), *(_brief(result, row) for row in result.rows), strict=True)
    )
    room = width - _column_width(first)
    groups: list[list[tuple[str, ...]]] = [[]]
    left = room
    for column in others:
        if groups[-1] and _column_width(column) > left:
            groups.append([])
            left = room
        groups[-1].append(column)
        left -= _column_width(column)
    predicted = " (predicted)" if result.kind == "predicted" else ""
    titles = [f"{result.suite}: {result.case}{predicted}", *[None] * (len(groups) - 1)]
    drawn = []
    for title, group in zip(titles, groups, strict=True):
        headings, *rows = zip(first, *group, strict=True)
        drawn.append(table_of(title, headings, rows, box=box.SIMPLE_HEAD, pad_edge=False))
    return drawn


def _column_width(cells: Sequence[str]) -> int:
    return max(map(len, cells)) + 2


def _brief(result: Result, row: Row) -> list[str]:
    first, *rest = (row.ratios.get(name) for name in result.references or ("",))
    medians = [number_text(ratio and ratio.median) for ratio in rest]
    ratios = [ratio_text(first), *medians][: len(result.references)]
    return [row.name, *ratios, number_text(1e3 * row.seconds.median), *_numbers(result, row)]


def _headings(result: Result) -> list[str]:
    times = [f"/ {name}" for name in result.references]
    return ["contestant", *times, "ms", *result.columns]


def _cells(result: Result, row: Row) -> list[str]:
    ratios = [ratio_text(row.ratios.get(name)) for name in result.references]
    return [row.name, *ratios, _milliseconds(row.seconds), *_numbers(result, row)]


def _numbers(result: Result, row: Row) -> list[str]:
    return [number_text(row.numbers.get(name)) for name in result.columns]


def ratio_text(ratio: Spread | None) -> str:
    """1.023 [1.01-1.04]: the median and the quartiles."""
    if ratio is None:
        return ""
    if ratio.low == ratio.high:
        return f"{ratio.median:.3f}"
    digits = 2 if ratio.median < 10 else 1
    return f"{ratio.median:.{digits + 1}f} [{ratio.low:.{digits}f}-{ratio.high:.{digits}f}]"


def number_text(number: float | None) -> str:
    """Four digits, or all before the point."""
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _milliseconds(seconds: Spread) -> str:
    low, median, high = (number_text(1e3 * s) for s in (seconds.low, seconds.median, seconds.high))
    return median if low == high else f"{median} [{low}-{high}]"


def markdown(about: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The same tables in Markdown, behind what they were measured with."""
    lines = opening("Benchmark", about)
    lines += ["", "Times are medians over rounds, with quartiles. `/ x` is the time as a multiple"]
    lines += ["of x's: the median of the rounds' own ratios, below 1 where it is faster than x."]
    for section in side_by_side(results):
        lines += as_markdown(section)
    for result in results:
        headings = _headings(result)
        lines += ["", f"## {result.suite}: {result.case} ({result.kind})", ""]
        cells = [_cells(result, row) for row in result.rows]
        lines += markdown_table(headings, cells, numbers="---:")
        lines += [""] if result.left_out or result.notes or result.failures else []
        lines += [f"- left out: {name}: {reason}" for name, reason in result.left_out.items()]
        lines += [f"- {note}" for note in result.notes]
        lines += [f"- **FAILED**: {failure}" for failure in result.failures]
    return "\n".join(lines) + "\n"
