"""The folder of a study: options, finished cells, states to resume from, results."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.run.files import atomic, write_json, write_text
from experiments.run.provenance import commit, cores, processor, versions
from experiments.run.settings import check_settings
from experiments.terminal.paths import try_folder
from polycom_jax._errors import InputError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Store:
    """A study's folder.

    Attributes:
        root: the folder.
        study: its name, as on the command line.
    """

    root: Path
    study: str

    @property
    def plots(self) -> Path:
        """Figures."""
        return self.root / "plots"

    @property
    def report(self) -> Path:
        """The short Markdown report."""
        return self.root / f"{self.study}.md"

    def open(self, options: Any, free: Sequence[str] = ()) -> None:
        """Makes the folder, or checks that what lies in it came from the same options.

        Args:
            options: a dataclass.
            free: names of fields that may differ.

        Raises:
            InputError: other options, or the folder cannot be made.
        """
        for folder in (self.plots, self.root / "cells"):
            try_folder("--out", folder)
        try:
            check_settings(
                self.root / f"{self.study}-options.json",
                asdict(options),
                free=free,
                holds="a study with other options",
                advice="Give the command that began it, or another --out.",
            )
        except OSError as error:
            raise InputError(f"--out {self.root} cannot be written: {error}.") from error

    def cell(self, name: str) -> dict[str, Any] | None:
        """A finished cell, or None."""
        path = self.root / "cells" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def keep_cell(self, name: str, cell: Row) -> None:
        """Keeps a finished cell."""
        path = self.root / "cells" / f"{name}.json"
        write_json(path, cell, indent=None, not_finite=lambda error: error)

    def state(self, name: str) -> Path:
        """The folder of Orbax checkpoints of an unfinished fit."""
        return self.root / "state" / name

    def forget(self, name: str) -> None:
        """Removes the states of a fit that is finished."""
        shutil.rmtree(self.state(name), ignore_errors=True)

    def write_rows(self, name: str, rows: Sequence[Row]) -> None:
        """Writes NAME.csv, one row each; columns are those of all rows, in order of appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with atomic(self.root / f"{name}.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                for row in rows
            )

    def write_json(self, name: str, command: str, tables: Mapping[str, Any]) -> None:
        """Writes NAME.json: about what ran where, then tables; infinities are the text "inf"."""
        write_json(self.root / f"{name}.json", {"about": about(command), **tables}, not_finite=str)

    def write_report(self, text: str) -> str:
        """Writes the report; returns what it found, and where everything lies, for the screen."""
        write_text(self.report, text.rstrip() + "\n")
        files = f"Report: {self.report}   Rows: {self.root / self.study}.csv   Plots: {self.plots}"
        return f"{findings(text)}\n{files}"


def findings(report: str) -> str:
    """The list at a report's beginning, or its first section where there is none."""
    head, *sections = report.split("\n## ")
    listed = [line for line in head.splitlines() if line.startswith("- ")]
    return "\n".join(listed) if listed or not sections else sections[0].rstrip()


def about(command: str) -> dict[str, Any]:
    """The command, versions, the machine and the commit."""
    machine = {"processor": processor(), "cores": str(cores())}
    return {"command": command, **versions(), **machine, "commit": commit() or "unknown"}
