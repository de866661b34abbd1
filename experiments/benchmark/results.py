"""What a benchmark found: spreads, rows (one a contestant), results (one a case)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Tell = Callable[[str], None]
"""Takes a few words on what is being done."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated readings.

    Attributes:
        median: of the readings.
        low: a quarter of them lie below.
        high: a quarter of them lie above.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, readings: Sequence[float]) -> "Spread":
        """The spread of at least one reading; between two readings it is interpolated."""
        low, median, high = (float(q) for q in np.quantile(readings, (0.25, 0.5, 0.75)))
        return cls(median, low, high)

    @classmethod
    def exact(cls, value: float) -> "Spread":
        """A number that does not vary: a count or a prediction."""
        return cls(value, value, value)


@dataclass(frozen=True)
class Row:
    """One contestant of a case.

    Attributes:
        name: of the contestant.
        seconds: of one call.
        ratios: reference contestant -> this one's time / the reference's, of paired rounds: above 1
            is slower than the reference.
        numbers: what else is known, with its unit in the name ("GB/s", "tokens/s", "MiB").
        rounds: the reading of every round in seconds, in order; empty where nothing was measured.
    """

    name: str
    seconds: Spread
    ratios: Mapping[str, Spread] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    rounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """One case: contestants that did the same work, or work that is to be compared.

    Attributes:
        suite: it belongs to.
        case: operation, shape, pass.
        rows: fastest first or in the order of the contest, the references among them.
        left_out: contestant -> why it did not run here.
        notes: what a reader of the numbers must know.
        kind: "measured" on this machine, or "predicted" for another.
        failures: what did not go as it should, a line each; the program then ends with 1.
        chip: that a prediction is for; nothing where work is not to be set side by side by chip.
        work: what was predicted, whatever the chip and the pass.
        which: pass of it.
    """

    suite: str
    case: str
    rows: tuple[Row, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kind: Literal["measured", "predicted"] = "measured"
    failures: tuple[str, ...] = ()
    chip: str = ""
    work: str = ""
    which: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """The contestants that others are compared with."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.ratios))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all numbers that some row has."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.numbers))


@dataclass(frozen=True)
class Case:
    """One thing to find out; nothing is allocated before it runs.

    A suite is a module with a function `cases(options) -> list[Case]`.

    Attributes:
        suite: it belongs to.
        name: operation, shape, pass.
        run: finds it out.
        guarded: whether an exception is a failure of this case alone, and others go on.
    """

    suite: str
    name: str
    run: Callable[[Tell], Result]
    guarded: bool = False

    def result(self, tell: Tell) -> Result:
        """What it found, or how it failed."""
        if not self.guarded:
            return self.run(tell)
        try:
            return self.run(tell)
        except Exception as error:
            return Result(self.suite, self.name, (), failures=(failure(error),))


def failure(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def rows_from_seconds(
    seconds: Mapping[str, Sequence[float]],
    references: Sequence[str],
    numbers: Callable[[str, float], Mapping[str, float]] = lambda name, seconds: {},
) -> tuple[Row, ...]:
    """Rows from the readings of alternating rounds.

    Args:
        seconds: contestant -> its reading in each round; all have as many.
        references: contestants to give ratios to; those that are not among `seconds` are passed
            over.
        numbers: (contestant, median seconds) -> its other numbers.

    Returns:
        One row a contestant, in the given order. A ratio is the spread of the rounds' own ratios:
        what slows the whole machine for a while drops out of it.
    """
    there = [name for name in references if name in seconds]
    rows = []
    for name, readings in seconds.items():
        spread = Spread.of(readings)
        ratios = {
            other: Spread.of([a / b for a, b in zip(readings, seconds[other], strict=True)])
            for other in there
        }
        rows.append(Row(name, spread, ratios, numbers(name, spread.median), tuple(readings)))
    return tuple(rows)
