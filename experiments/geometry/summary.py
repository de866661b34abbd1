"""What a study comes to: means over tasks and seeds, differences between activations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.geometry.study import AT_LOSS, MEASURES, Numbers
from experiments.geometry.tasks import KINDS, Task
from experiments.run.statistics import Paired, mean_interval, paired, planned

Measured = Mapping[str, Mapping[str, Numbers]]
"""Activation -> task -> what was measured."""

LABELS_FIRST, INPUTS_FIRST = "tanh", "relu"
"""The two that the published finding is about."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        mean: of the seeds that have a number; NaN where fewer than two have.
        low: lower end of its 95 % interval.
        high: upper end.
        missing: seeds without a number.
    """

    mean: float
    low: float
    high: float
    missing: int


def mean_of(values: Iterable[float]) -> Mean:
    """The mean and Student's interval."""
    x = np.asarray(list(values), np.float64)
    known = x[np.isfinite(x)]
    found = mean_interval(known) if known.size > 1 else (float("nan"),) * 3
    return Mean(*found, missing=int(x.size - known.size))


def by_kind(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Kind -> names of its tasks, for kinds that there are tasks of."""
    found = {kind: [task.name for task in tasks if task.kind == kind] for kind in KINDS}
    return {kind: names for kind, names in found.items() if names}


def seed_means(
    tasks: Mapping[str, Numbers], names: Iterable[str], measure: str
) -> Float[np.ndarray, " S"]:
    """Of each seed, the mean over tasks: NaN where a task has no number for it."""
    return np.mean([tasks[name][measure] for name in names], axis=0)


def means(measured: Measured, tasks: Sequence[Task]) -> dict[str, dict[str, dict[str, Mean]]]:
    """Kind -> activation -> measure -> mean over its tasks; at equal loss, over `comparable`."""
    kinds, at_loss = by_kind(tasks), comparable(measured, tasks)
    return {
        kind: {
            act: {
                measure: _mean(own, at_loss[kind] if measure == AT_LOSS else names, measure)
                for measure in MEASURES
            }
            for act, own in measured.items()
        }
        for kind, names in kinds.items()
    }


def _mean(tasks: Mapping[str, Numbers], names: Sequence[str], measure: str) -> Mean:
    return mean_of(seed_means(tasks, names, measure) if names else ())


def comparable(measured: Measured, tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Kind -> names of the tasks in which all activations came to `EQUAL_LOSS`, with every seed.

    An activation that did so in no task of a kind has no number there, and takes none from others.
    """
    short = short_of_loss(measured)
    found = {}
    for kind, names in by_kind(tasks).items():
        there = [set(names) - short[act] for act in measured]
        there = [own for own in there if own]
        found[kind] = [name for name in names if there and all(name in own for own in there)]
    return found


def short_of_loss(measured: Measured) -> dict[str, set[str]]:
    """Activation -> tasks in which one of its networks was never seen at `EQUAL_LOSS` or less."""
    return {
        act: {task for task, found in own.items() if not np.isfinite(found[AT_LOSS]).all()}
        for act, own in measured.items()
    }


@dataclass(frozen=True)
class Difference:
    """arm - reference of a measure, seeds paired, mean over the tasks of a kind.

    Attributes:
        kind: of tasks.
        arm: an activation.
        reference: another.
        found: statistics; None where a seed of one of them has no number.
        adjusted: p by Holm over all differences of a table, made or not; NaN where there is none.
    """

    kind: str
    arm: str
    reference: str
    found: Paired | None
    adjusted: float = float("nan")


def differences(
    measured: Measured,
    tasks: Sequence[Task],
    pairs: Iterable[tuple[str, str]],
    measure: str = "turn",
) -> list[Difference]:
    """Of each (arm, reference), for each kind; p adjusted over all of them."""
    found = [
        Difference(kind, arm, reference, _paired(measured, names, arm, reference, measure))
        for arm, reference in pairs
        for kind, names in by_kind(tasks).items()
    ]
    adjusted = planned([each.found for each in found])
    return [replace(each, adjusted=p) for each, p in zip(found, adjusted, strict=True)]


def _paired(
    measured: Measured, names: Iterable[str], arm: str, reference: str, measure: str
) -> Paired | None:
    a, b = (seed_means(measured[act], list(names), measure) for act in (arm, reference))
    return paired(a.tolist(), b.tolist()) if np.isfinite(a + b).all() else None


@dataclass(frozen=True)
class Finding:
    """The published finding at the tasks of one kind: tanh nearer to labels than ReLU.

    Attributes:
        kind: of tasks.
        labels: tanh - relu of the alignment with labels.
        inputs: the same with inputs.
        nearer: tasks in which tanh's turn is greater, its interval leaving zero out.
        farther: in which it is smaller.
        tasks: how many there are.
    """

    kind: str
    labels: Paired | None
    inputs: Paired | None
    nearer: int
    farther: int
    tasks: int

    @property
    def holds(self) -> bool:
        """Whether both differences have the published sign, and intervals leave zero out."""
        both = self.labels is not None and self.inputs is not None
        return both and self.labels.low > 0 and self.inputs.high < 0  # pyright: ignore


def findings(measured: Measured, tasks: Sequence[Task]) -> list[Finding]:
    """One a kind of tasks; none where tanh or ReLU is not among the activations."""
    if not {LABELS_FIRST, INPUTS_FIRST} <= measured.keys():
        return []
    return [_finding(measured, kind, names) for kind, names in by_kind(tasks).items()]


def _finding(measured: Measured, kind: str, names: Sequence[str]) -> Finding:
    def difference(names: Sequence[str], measure: str) -> Paired | None:
        return _paired(measured, names, LABELS_FIRST, INPUTS_FIRST, measure)

    single = [found for name in names if (found := difference([name], "turn"))]
    return Finding(
        kind,
        difference(names, "labels"),
        difference(names, "inputs"),
        sum(each.low > 0 for each in single),
        sum(each.high < 0 for each in single),
        len(names),
    )


def record(value: Any) -> Any:
    """A dataclass as what JSON knows, numbers to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: record(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [record(each) for each in value]
    return record(vars(value)) if hasattr(value, "__dataclass_fields__") else value
