"""What the torture did and found: JSON for programs, Markdown for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from experiments.faults.run_attempt import RunAttempt
from experiments.run.files import write_json, write_text
from experiments.terminal.tables import markdown_table, table_of
from polycom_jax.training import latest_step

HEADINGS = (
    "kill",
    "run",
    "by",
    "aimed at",
    "hit in",
    "resumed from",
    "step reached",
    "checkpoint",
    "s",
)


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        number: from 1.
        run: which of the tortured runs, from 1.
        by: the signal.
        aimed: the phase that was drawn.
        phase: what the run was doing when it died.
        resumed_from: step of the checkpoint that this life began with, 0 without one.
        step: last step that it had done.
        checkpoint: step of the newest finished checkpoint that it left, 0 without one.
        seconds: how long it had lived.
    """

    number: int
    run: int
    by: str
    aimed: str
    phase: str
    resumed_from: int
    step: int
    checkpoint: int
    seconds: float

    @classmethod
    def of(cls, life: RunAttempt, number: int, run: int) -> "Kill":
        """The row of a life that was killed."""
        left = latest_step(life.folder / "checkpoints") or 0
        step = max(life.step, life.began_at)
        assert life.plan is not None
        by, aimed = life.plan.number.name, life.plan.phase
        return cls(number, run, by, aimed, life.phase, life.began_at, step, left, life.seconds)

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `HEADINGS`."""
        *values, seconds = asdict(self).values()
        return (*map(str, values), f"{seconds:.1f}")


@dataclass(frozen=True)
class Outcome:
    """All that was done and found.

    Attributes:
        command: that does it again.
        about: versions and circumstances.
        kills: in order.
        runs: how often a killed run came to its end.
        differences: run -> what differs from the run that nothing disturbed.
    """

    command: str
    about: Mapping[str, str]
    kills: Sequence[Kill]
    runs: int
    differences: Mapping[int, Sequence[str]]

    @property
    def equal(self) -> int:
        """Kills behind which the run came to the same bits."""
        return sum(not self.differences.get(kill.run) for kill in self.kills)

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.equal} of {len(self.kills)} kills left no trace: {self.runs} runs compared with"
            " one that nothing disturbed, all arrays of the last checkpoint and all metrics"
        )

    def write(self, folder: Path) -> None:
        """faults.json and faults.md, each whole."""
        write_json(folder / "faults.json", asdict(self) | {"equal": self.equal})
        write_text(folder / "faults.md", self.markdown())

    def markdown(self) -> str:
        """The table in Markdown."""
        out = ["# Faults", "", f"    {self.command}", "", f"{self.summary()}.", ""]
        out += [f"- {name}: {value}" for name, value in self.about.items()]
        out += ["", *markdown_table(HEADINGS, [kill.cells() for kill in self.kills])]
        for run, found in self.differences.items():
            out += (
                ["", f"Run {run} differs:", "", *(f"- {text}" for text in found)] if found else []
            )
        return "\n".join(out) + "\n"

    def table(self) -> Table:
        """The same for a terminal."""
        return table_of("kills", HEADINGS, [kill.cells() for kill in self.kills], left=())
