"""What a study comes to: means over seeds, and differences to the reference, seeds paired."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.run.statistics import (
    LEVEL,
    Paired,
    in_words,
    mean_interval,
    paired,
    planned,
    smallest_p,
)
from experiments.vision.study import Cell
from experiments.vision.train import Run

MEASURES: Mapping[str, str] = {
    "error": "images of the test part that are classified wrongly, in percent",
    "loss": "cross-entropy on the test part, nats an image",
}
"""What runs are judged by -> what it is; lower is better."""
ROUNDING = {"error": 100 * float(np.finfo(np.float32).eps), "loss": 0.0}
"""By what a difference of two runs may be off: errors are counts, from accuracies in float32."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its interval; NaN where fewer than two runs have a number."""

    mean: float
    low: float
    high: float


def values(runs: Sequence[Run], measure: str) -> Float[np.ndarray, " S"]:
    """One number a run; NaN where it failed."""
    take = {"error": lambda run: 100 * (1 - run.test_accuracy), "loss": lambda run: run.test_loss}
    return np.array([take[measure](run) for run in runs], np.float64)


def mean_of(x: Float[np.ndarray, " S"]) -> Mean:
    """Of the numbers that there are."""
    known = x[np.isfinite(x)]
    return Mean(*mean_interval(known)) if known.size > 1 else Mean(*[float("nan")] * 3)


@dataclass(frozen=True)
class Difference:
    """Activation - reference in one model.

    Attributes:
        model: in which.
        activation: the arm.
        reference: another activation, of as many seeds.
        measure: a name of `MEASURES`.
        found: statistics; None where a run of one of them failed.
        adjusted: p by Holm over all differences of this measure, made or not; NaN where there is
            none.
    """

    model: str
    activation: str
    reference: str
    measure: str
    found: Paired | None
    adjusted: float = float("nan")

    @property
    def verdict(self) -> str:
        """In words."""
        return in_words(self.found, self.adjusted)


def differences(cells: Sequence[Cell], reference: str, measure: str) -> list[Difference]:
    """Of each activation in each model where the reference ran, too."""
    references = {cell.model: cell for cell in cells if cell.activation == reference}
    made = [
        Difference(
            cell.model,
            cell.activation,
            reference,
            measure,
            _paired(cell, references[cell.model], measure),
        )
        for cell in cells
        if cell.model in references and cell.activation != reference
    ]
    adjusted = planned([each.found for each in made])
    return [replace(each, adjusted=p) for each, p in zip(made, adjusted, strict=True)]


def _paired(cell: Cell, reference: Cell, measure: str) -> Paired | None:
    runs, others = ({run.seed: run for run in each.results()} for each in (cell, reference))
    seeds = sorted(runs.keys() & others.keys())
    a, b = (values([own[seed] for seed in seeds], measure) for own in (runs, others))
    if len(seeds) < 2 or not np.isfinite(a + b).all():
        return None
    return paired(a.tolist(), b.tolist(), rounding=ROUNDING[measure])


def remarks(cells: Sequence[Cell], found: Sequence[Difference], reference: str) -> list[str]:
    """What there is to know before reading."""
    lines = [_verdicts([each for each in found if each.measure == "error"], reference)]
    seeds = max(len(cell.results()) for cell in cells)  # what no difference has more of
    count = max(sum(each.measure == name for each in found) for name in MEASURES)
    if seeds > 1 and count * smallest_p(seeds) > LEVEL:
        lines.append(
            f"{seeds} seeds give no p below {smallest_p(seeds):.2g}, and Holm multiplies the least"
            f" of {count} by {count}: no difference of this study can be significant after it."
            " Intervals are of single comparisons."
        )
    failed = [
        f"{cell.name} ({count} of {len(cell.results())})"
        for cell in cells
        if (count := sum(run.failed for run in cell.results()))
    ]
    if failed:
        lines.append(f"Runs that failed, their loss being no finite number: {', '.join(failed)}.")
    edges = [cell.name for cell in cells if cell.searched.at_edge]
    if edges:
        lines.append(f"The best rate is at the edge of what was tried: {'; '.join(edges)}.")
    return lines


def _verdicts(found: Sequence[Difference], reference: str) -> str:
    words = {"fewer": lambda each: each.high < 0, "more": lambda each: each.low > 0}
    said = []
    for word, holds in words.items():
        names = [f"{e.activation} ({e.model})" for e in found if e.found and holds(e.found)]
        if names:
            said.append(f"{word} errors than {reference}, by an interval: {', '.join(names)}")
    level = any(each.found for each in found)
    none_found = f"no difference to {reference} was found" if level else "nothing could be compared"
    text = "; ".join(said) or none_found
    none = [each for each in found if each.found and not each.found.found]
    rest = f" No difference found: {len(none)} of {len(found)}." if said and none else ""
    return f"**{text[0].upper()}{text[1:]}.**{rest}"


def record(cells: Sequence[Cell], found: Sequence[Difference]) -> dict[str, Any]:
    """For results.json; a difference without numbers is null."""
    return {
        "measures": MEASURES,
        "cells": [
            {
                "model": cell.model,
                "activation": cell.activation,
                "parameters": cell.parameters,
                "search": vars(cell.searched),
                **{name: vars(mean_of(values(cell.results(), name))) for name in MEASURES},
                "failed": sum(run.failed for run in cell.results()),
                "seeds": {name: values(cell.results(), name).tolist() for name in MEASURES},
            }
            for cell in cells
        ],
        "differences": [
            {**vars(each), "found": vars(each.found) if each.found else None} for each in found
        ],
    }
