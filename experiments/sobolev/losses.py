"""The same networks trained by another loss: errors over those of an earlier study, by seed."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sobolev import markdown
from experiments.sobolev.choice import failures
from experiments.sobolev.intervals import METRICS, interval
from polycom_jax._errors import InputError, require

Row = dict[str, Any]
Key = tuple[str, str, str, str]
"""(activation, size, target, seed)."""

INTRODUCTION = (
    "The same networks at the same seeds, so the same start, batches and number of steps, trained"
    " by the other loss at its own learning rates. Ratios of errors, this study's over the other's:"
    " below 1, this loss is better. Averaged over sizes and targets for each seed, with the 95 %"
    " interval over seeds; targets in the last columns, H1 errors."
)


def stored_runs(path: Path) -> dict[Key, Row]:
    """The runs of a study's CSV.

    Raises:
        InputError: no such file, or not of such a study.
    """
    require(path.is_file(), f"--beside {path}: there is no such file.")
    columns = {"activation", "size", "target", "seed", *METRICS}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not columns <= set(rows[0]):
        raise InputError(f"--beside {path} must be the CSV of a study, with {sorted(columns)}.")
    return {
        (row["activation"], row["size"], row["target"], row["seed"]): {
            metric: float(row[metric]) for metric in METRICS
        }
        for row in rows
    }


def check(path: str | None) -> None:
    """Refuses what `section` could not read, before any work."""
    if path:
        stored_runs(Path(path))


def section(cells: Sequence[Row], path: Path, loss: str) -> list[str]:
    """Of the report: what training by `loss` changed."""
    rows = paired(cells, stored_runs(path))
    return [
        f"## Trained by {loss} beside the other loss",
        "",
        INTRODUCTION,
        "",
        *markdown.table(rows),
        "",
    ]


def paired(cells: Sequence[Row], others: dict[Key, Row]) -> list[Row]:
    """One row an activation, the largest gain in H1 first.

    Raises:
        InputError: the other study lacks a run of these.
    """
    found = []
    for activation in dict.fromkeys(cell["activation"] for cell in cells):
        own = [cell for cell in cells if cell["activation"] == activation]
        pairs = [
            (run["target"], run["seed"], run, _other(cell, run, others))
            for cell in own
            for run in cell["runs"]
        ]
        ratios = {metric: _ratio(pairs, metric) for metric in METRICS}
        row: Row = {"network": activation}
        for metric, label in METRICS.items():
            row[label] = markdown.ranged(*ratios[metric])
        mine, theirs = [p[2] for p in pairs], [p[3] for p in pairs]
        row["failed"] = f"{failures(mine)}, before {failures(theirs)}, of {len(pairs)}"
        for target in dict.fromkeys(p[0] for p in pairs):
            row[target] = markdown.ranged(*_ratio([p for p in pairs if p[0] == target], "h1"))
        found.append((ratios["h1"][0], row))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def _other(cell: Row, run: Row, others: dict[Key, Row]) -> Row:
    key = (cell["activation"], str(cell["size"]), run["target"], str(run["seed"]))
    require(key in others, f"--beside: the other study has no run {', '.join(key)}.")
    return others[key]


def _ratio(pairs: Sequence[tuple[str, int, Row, Row]], metric: str) -> tuple[float, float, float]:
    seeds = dict.fromkeys(seed for _, seed, _, _ in pairs)
    logs = [
        np.mean([np.log(run[metric] / other[metric]) for _, s, run, other in pairs if s == seed])
        for seed in seeds
    ]
    return interval(np.array(logs))
