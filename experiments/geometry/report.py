"""A study as tables and a few sentences."""

from collections.abc import Mapping, Sequence
from statistics import mean

from experiments.geometry.study import AT_LOSS, EQUAL_LOSS, MEASURES, ccgp_ceiling
from experiments.geometry.summary import (
    INPUTS_FIRST,
    LABELS_FIRST,
    Difference,
    Finding,
    Mean,
    Measured,
    comparable,
    mean_of,
    short_of_loss,
)
from experiments.geometry.tasks import KINDS, Task
from experiments.run.statistics import Paired
from experiments.terminal.tables import Section

Means = Mapping[str, Mapping[str, Mapping[str, Mean]]]

SHOWN = {
    "turn": "turn",
    "inputs": "with inputs",
    "labels": "with labels",
    "parallelism": "parallelism",
    "ccgp": "CCGP",
    "decoding": "other dichotomies",
    "dimension": "dimension",
    "accuracy": "accuracy",
    "loss": "loss",
}
"""Measures of the large table -> their columns."""


def sections(
    measured: Measured,
    tasks: Sequence[Task],
    found: Sequence[Finding],
    means: Means,
    beside: Sequence[Difference],
) -> list[Section]:
    """All tables."""
    return [
        *([_finding(found)] if found else []),
        _means(tasks, means),
        *([_beside(beside)] if beside else []),
        _equal_loss(measured, tasks, means),
        _each_task(measured, tasks),
    ]


def remarks(found: Sequence[Finding], means: Means) -> list[str]:
    """What there is to know before reading: is the study right, did every network learn?"""
    lines = []
    if found:
        held = [each.kind for each in found if each.holds]
        not_held = [each.kind for each in found if not each.holds]
        nearer, all_ = sum(each.nearer for each in found), sum(each.tasks for each in found)
        farther = sum(each.farther for each in found)
        lines.append(
            "**The published finding, that tanh's hidden layers are nearer to the labels and ReLU's"
            f" to the inputs, {_where(held, not_held)}** tanh's is nearer to the labels in {nearer}"
            f" of {all_} tasks and farther from them in {farther} (intervals of the turn leave"
            " zero out)."
        )
    failed = [
        f"{act} ({kind}: {own['turn'].missing} seeds)"
        for kind, acts in means.items()
        for act, own in acts.items()
        if own["turn"].missing
    ]
    if failed:
        lines.append(f"Not finite after training, and left out: {', '.join(failed)}.")
    return lines


def _where(held: Sequence[str], not_held: Sequence[str]) -> str:
    if not held:
        return "does not come out."
    if not not_held:
        return "comes out for all kinds of tasks."
    return f"comes out for {'; '.join(held)}, and not for {'; '.join(not_held)}."


def _finding(found: Sequence[Finding]) -> Section:
    rows = [
        (
            each.kind,
            _signed(each.labels),
            _signed(each.inputs),
            str(each.nearer),
            str(each.farther),
            str(each.tasks),
            "yes" if each.holds else "no",
        )
        for each in found
    ]
    return Section(
        f"Does the published finding come out? {LABELS_FIRST} - {INPUTS_FIRST}",
        ("tasks", "with labels", "with inputs", "nearer", "farther", "of", "comes out"),
        tuple(rows),
        (
            "Differences of alignments, both kernels made orthogonal, paired over seeds, 95 %"
            f" intervals. Nearer: tasks in which {LABELS_FIRST}'s turn is greater, its interval"
            " leaving zero out; farther: in which it is smaller.",
        ),
    )


def _means(tasks: Sequence[Task], means: Means) -> Section:
    rows = [
        (kind, act, *(_cell(own[measure], measure) for measure in SHOWN))
        for kind, acts in means.items()
        for act, own in acts.items()
    ]
    notes = [f"{label}: {MEASURES[measure]}." for measure, label in SHOWN.items()]
    notes += [f"{kind}: {about}." for kind, about in KINDS.items() if kind in means]
    notes.append("Means over tasks of a kind, 95 % intervals over seeds.")
    notes += _ceilings(tasks)
    title = "Where hidden layers are after training"
    return Section(title, ("tasks", "activation", *SHOWN.values()), tuple(rows), (" ".join(notes),))


def _ceilings(tasks: Sequence[Task]) -> list[str]:
    """What CCGP can be at most, where that is less than 1."""
    ceilings: dict[str, list[float]] = {}
    for task in tasks:
        ceilings.setdefault(task.kind, []).append(ccgp_ceiling(task.points(0)))
    told = [f"{mean(own):.3g} in {kind}" for kind, own in ceilings.items() if mean(own) < 1]
    if not told:
        return []
    return [
        "Where conditions are split by the product of two labels, the two have one classifier"
        " between them, and on the other side it is right for one of them at most: CCGP has a"
        f" ceiling of {', '.join(told)}."
    ]


def _beside(beside: Sequence[Difference]) -> Section:
    rows = [
        (
            each.arm,
            each.reference,
            each.kind,
            _signed(each.found),
            "" if each.found is None else f"{each.found.p:.2g}",
            "" if each.found is None else f"{each.adjusted:.2g}",
        )
        for each in beside
    ]
    return Section(
        "Turns beside those of tanh and ReLU",
        ("activation", "beside", "tasks", "difference", "p", "p, Holm"),
        tuple(rows),
        (
            "Above zero: nearer to the labels. Paired over seeds, 95 % intervals; p of the"
            " sign-flip test, then by Holm over all rows, those without a number included.",
        ),
    )


def _equal_loss(measured: Measured, tasks: Sequence[Task], means: Means) -> Section:
    rows, there = [], f"first look with loss of at most {EQUAL_LOSS}"
    for kind, names in comparable(measured, tasks).items():
        count = sum(task.kind == kind for task in tasks)
        for label, measure in (
            ("as initialised", "turn_before"),
            (f"{there}, {len(names)} of {count} tasks", AT_LOSS),
            ("after training", "turn"),
        ):
            cells = (_cell(means[kind][act][measure], measure) for act in measured)
            rows.append((kind, label, *cells))
    return Section(
        "Turns before, at about equal loss, and after",
        ("tasks", "when", *measured),
        tuple(rows),
        (
            "Activations learn at different speed, so after equally many steps they are at"
            " different losses. Looks lie at steps in geometric progression, so losses at the first"
            " one at or below that loss can be as far below it as they fall between two looks. That"
            " row has only tasks in which all activations came there with every seed; one that did"
            " in no task of a kind has no number, and takes none from others."
            f"{_left_out(measured, tasks)}",
        ),
    )


def _left_out(measured: Measured, tasks: Sequence[Task]) -> str:
    kept = {name for names in comparable(measured, tasks).values() for name in names}
    short = short_of_loss(measured)
    told = [
        f"{task.name} (by {', '.join(act for act in measured if task.name in short[act])})"
        for task in tasks
        if task.name not in kept
    ]
    return f" Left out: {'; '.join(told)}." if told else ""


def _each_task(measured: Measured, tasks: Sequence[Task]) -> Section:
    def cells(name: str) -> list[str]:
        return [_cell(mean_of(own[name]["turn"]), "turn") for own in measured.values()]

    rows = [(task.name, *cells(task.name)) for task in tasks]
    return Section("Turn in each task", ("task", *measured), tuple(rows))


def _cell(mean: Mean, measure: str) -> str:
    digits = 1 if measure == "dimension" else 2
    missing = f" (-{mean.missing})" if mean.missing else ""
    if mean.mean != mean.mean:
        return f"none{missing}"
    if measure == "loss":
        return f"{mean.mean:.2g}{missing}"
    half = (mean.high - mean.low) / 2
    return f"{mean.mean:.{digits}f} ± {half:.{digits}f}{missing}"


def _signed(found: Paired | None, *, digits: int = 3) -> str:
    if found is None:
        return "none"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
