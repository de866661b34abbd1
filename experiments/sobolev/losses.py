"""The same networks trained by another loss: errors over those of an earlier study, by seed."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run.settings import changes, listed
from experiments.sobolev import markdown
from experiments.sobolev.choice import failures
from experiments.sobolev.intervals import METRICS, interval
from experiments.sobolev.options import TrainOptions
from polycom_jax._errors import InputError, require

Row = dict[str, Any]
Key = tuple[str, str, str, str]
"""(activation, size, target, seed)."""

SHARED = ("steps", "batch_size", "points", "dim", "layers", "cells")
"""Options that runs of the two losses must have in common, or more than the loss differs."""

INTRODUCTION = (
    "The same networks at the same seeds, so the same start, batches and number of steps, trained"
    " by the other loss at its own learning rates. Ratios of errors, this study's over the other's:"
    " below 1, this loss is better. Averaged over sizes and targets for each seed, with the 95 %"
    " interval over seeds; targets in the last columns, H1 errors."
)

UNKNOWN = "The other study's options do not lie beside its CSV, so they were not compared."


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
    try:
        return {
            (row["activation"], row["size"], row["target"], row["seed"]): {
                metric: float(row[metric]) for metric in METRICS
            }
            for row in rows
        }
    except (TypeError, ValueError) as error:
        raise InputError(f"--beside {path} holds an error that is no number: {error}.") from error


def check(options: TrainOptions, networks: Iterable[tuple[str, int]]) -> None:
    """Refuses a study that runs of this one cannot be paired with, before any is trained.

    Args:
        options: of this study.
        networks: (activation, size) of all of its cells.

    Raises:
        InputError: `options.beside` is no study's CSV, lacks runs, or its study had the same loss,
            or others of the options `SHARED`.
    """
    if not options.beside:
        return
    path = Path(options.beside)
    others = stored_runs(path)
    wanted = [
        (activation, str(size), target, str(seed))
        for activation, size in networks
        for target in options.targets
        for seed in range(options.seeds)
    ]
    missing = [key for key in wanted if key not in others]
    require(
        not missing,
        f"--beside {path} lacks {len(missing)} of the {len(wanted)} runs of this study, such as"
        f" {', '.join(missing[0]) if missing else ''}; give activations, sizes, targets and seeds"
        " that it has.",
    )
    _check_options(options, path)


def _check_options(options: TrainOptions, path: Path) -> None:
    before = stored_options(path)
    if before is None:
        return
    now = {name: value for name, value in asdict(options).items() if name in SHARED}
    changed = changes(before, now)
    require(
        not changed,
        f"--beside {path} is of a study with other options ({listed(changed)}): give the same ones,"
        " or the loss is not all that differs.",
    )
    require(
        before.get("loss") != options.loss,
        f"--beside {path} is of a study trained by {options.loss}, too: give the other --loss.",
    )


def stored_options(path: Path) -> dict[str, Any] | None:
    """The options that lie beside a study's CSV, in the study's folder; None: there are none.

    Raises:
        InputError: they cannot be read.
    """
    file = path.with_name(f"{path.stem}-options.json")
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--beside {path}: {file} cannot be read: {error}.") from error


def section(cells: Sequence[Row], path: Path, loss: str) -> list[str]:
    """Of the report: what training by `loss` changed."""
    rows = paired(cells, stored_runs(path))
    return [
        f"## Trained by {loss} beside the other loss",
        "",
        INTRODUCTION if stored_options(path) else f"{INTRODUCTION} {UNKNOWN}",
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
