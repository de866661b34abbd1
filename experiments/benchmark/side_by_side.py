"""Predictions of the same work for several chips in one table: a row for each contestant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.benchmark.results import Result, Row
from experiments.terminal.tables import Section

READS, WRITES = "reads of x", "writes of x"


@dataclass(frozen=True)
class Work:
    """What was predicted of one work.

    Attributes:
        name: of the work.
        cases: (chip, pass) -> rows by contestant.
    """

    name: str
    cases: dict[tuple[str, str], Mapping[str, Row]]

    @property
    def chips(self) -> list[str]:
        """In the order of the results."""
        return list(dict.fromkeys(chip for chip, _ in self.cases))

    @property
    def passes(self) -> list[str]:
        """Likewise."""
        return list(dict.fromkeys(which for _, which in self.cases))

    @property
    def contestants(self) -> list[str]:
        """All that some case has."""
        return list(dict.fromkeys(name for rows in self.cases.values() for name in rows))

    @property
    def reference(self) -> str:
        """What times are divided by: the first reference of the first row that has one."""
        every = [row for rows in self.cases.values() for row in rows.values()]
        return next((name for row in every for name in row.ratios), "")

    @property
    def counted(self) -> bool:
        """Whether traffic was counted in passes over x."""
        every = [row for rows in self.cases.values() for row in rows.values()]
        return any(READS in row.numbers for row in every)

    def rows(self, chip: str, contestant: str) -> list[Row | None]:
        """One a pass; None where it was not predicted."""
        return [self.cases.get((chip, which), {}).get(contestant) for which in self.passes]

    def passes_text(self, chip: str, contestant: str) -> str:
        """ "1 + 1, 2 + 1": reads and writes of all of x, to a tenth, by pass."""
        return ", ".join(map(_passes_text, self.rows(chip, contestant)))

    def seconds(self, chip: str, contestant: str) -> float | None:
        """Of all passes together, or None where one is missing."""
        there = [row.seconds.median for row in self.rows(chip, contestant) if row is not None]
        return sum(there) if len(there) == len(self.passes) else None

    def ratio(self, chip: str, contestant: str) -> float | None:
        """Of these to the reference's."""
        seconds, other = self.seconds(chip, contestant), self.seconds(chip, self.reference)
        return None if seconds is None or other is None else seconds / other


def side_by_side(results: Sequence[Result]) -> tuple[Section, ...]:
    """One table for each work that was predicted for several chips, or in several passes."""
    return tuple(_section(work) for work in works(results) if len(work.cases) > 1)


def works(results: Sequence[Result]) -> list[Work]:
    """What was predicted, work by work."""
    found: dict[str, Work] = {}
    for result in results:
        if result.chip:
            name = f"{result.suite}: {result.work}"
            cases = found.setdefault(name, Work(name, {})).cases
            cases[result.chip, result.which] = {row.name: row for row in result.rows}
    return list(found.values())


def _section(work: Work) -> Section:
    columns = ["contestant"]
    columns += [f"{chip}, reads + writes" for chip in work.chips if work.counted]
    for chip in work.chips:
        columns += [f"{chip}, ms", f"/ {work.reference}"]
    rows = tuple(_cells(work, name) for name in work.contestants)
    note = f"{', '.join(work.passes)}; times are sums of them."
    return Section(f"{work.name}, side by side", tuple(columns), rows, (note,))


def _cells(work: Work, name: str) -> tuple[str, ...]:
    cells = [name]
    cells += [work.passes_text(chip, name) for chip in work.chips if work.counted]
    for chip in work.chips:
        seconds, ratio = work.seconds(chip, name), work.ratio(chip, name)
        cells.append("" if seconds is None else f"{1e3 * seconds:.4g}")
        cells.append("" if ratio is None else f"{ratio:.3f}")
    return tuple(cells)


def _passes_text(row: Row | None) -> str:
    if row is None or READS not in row.numbers:
        return "none"
    return " + ".join(f"{row.numbers[name]:.1f}".removesuffix(".0") for name in (READS, WRITES))
