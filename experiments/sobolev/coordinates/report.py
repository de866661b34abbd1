"""A study as tables."""

import math
from collections.abc import Sequence

from experiments.sobolev.coordinates.arms import ARMS
from experiments.sobolev.coordinates.study import Cell
from experiments.sobolev.coordinates.summary import (
    MAIN,
    MEASURES,
    Difference,
    Mean,
    Measure,
    mean_of,
    measures,
    ranked,
)
from experiments.sobolev.coordinates.targets import kind_of
from experiments.terminal.tables import Section

SL2A_FORMULA = "sum_k c_k T_k(tanh x) an edge, first layer; then ReLU layers of low rank, times it"
SL2A_SOURCE = "Heidari et al. 2025 (2409.10836) and its code; degree and rank by its proportions"


def sections(cells: Sequence[Cell], found: Sequence[Difference]) -> list[Section]:
    """All tables."""
    targets = list(dict.fromkeys(cell.target for cell in cells))
    tables = [_results(cells, target) for target in targets]
    tables += [_differences(found, target) for target in targets if found]
    return [*tables, _rates(cells), _arms(cells)]


def _results(cells: Sequence[Cell], target: str) -> Section:
    names = measures(target)
    rows = []
    for cell, _ in ranked(cells, target):
        runs = cell.results()
        rows.append(
            (
                cell.arm,
                f"{cell.parameters:,}",
                f"{cell.rate:g}",
                *(shown(mean_of(runs, each), each) for each in names.values()),
                f"{len(runs)}",
                f"{cell.failed}",
            )
        )
    return Section(
        f"On {target}",
        ("arm", "parameters", "rate", *names, "seeds", "failed"),
        tuple(rows),
        (
            " ".join(f"{name}: {each.about}." for name, each in names.items())
            + " Means over seeds that did not fail, of errors geometric ones, 95 % intervals.",
        ),
    )


def shown(mean: Mean, measure: Measure) -> str:
    """With its interval."""
    if math.isnan(mean.mean):
        return "none"
    form = ".2f" if measure.decibels else ".3g"
    return f"{mean.mean:{form}} [{mean.low:{form}}, {mean.high:{form}}]"


def _differences(found: Sequence[Difference], target: str) -> Section:
    own = [each for each in found if each.target == target]
    names = measures(target)
    rows = []
    for arm in dict.fromkeys(each.arm for each in own):
        of_arm = {each.measure: each for each in own if each.arm == arm}
        cells = [_difference(of_arm[name]) for name in names]
        rows.append((arm, *cells, of_arm[MAIN[kind_of(target)]].verdict))
    return Section(
        f"Beside {found[0].reference} on {target}",
        ("arm", *names, f"by {MAIN[kind_of(target)]}"),
        tuple(rows),
        (
            "PSNR: difference in dB, above 0 is better. Errors: ratio, below 1 is better. Seeds are"
            " paired; 95 % intervals; p of the sign-flip test, by Holm over all rows of a measure."
            " Where runs failed, mean and interval are of the pairs in which neither did, and say"
            " how many these are; p is of all pairs, by ranks, a run that failed being behind every"
            " one that did not, and the verdict goes by p alone.",
        ),
    )


def _difference(each: Difference) -> str:
    p = "" if math.isnan(each.p) else f", p {each.adjusted:.2g}"
    of = f" of {each.pairs}" if each.pairs < each.seeds else ""
    if each.found is None:
        return f"none{p}"
    measure = MEASURES[each.measure]
    ends = (each.found.mean, each.found.low, each.found.high)
    if not measure.decibels:
        ends = tuple(math.exp(min(end, 700.0)) for end in ends)
    form = "+.2f" if measure.decibels else ".3g"
    mean, low, high = (f"{end:{form}}" for end in ends)
    return f"{mean} [{low}, {high}]{of}{p}"


def _rates(cells: Sequence[Cell]) -> Section:
    rows = []
    for cell in cells:
        search = cell.searched
        on = next(run.target for run in cell.runs if run.target != cell.target)
        tried = zip(search.rates, search.losses, strict=True)
        text = ", ".join(f"{rate:g}: {loss:.3g}" for rate, loss in tried)
        rows.append((cell.target, on, cell.arm, text, "yes" if search.at_edge else "no"))
    return Section(
        "How rates were chosen",
        ("target", "chosen on", "arm", "rate: error held out", "best at the edge"),
        tuple(rows),
        (
            "At points held out of another target of its kind, with seeds that the results do not"
            " use. The grid grows by its outermost ratio while its best is at an edge.",
        ),
    )


def _arms(cells: Sequence[Cell]) -> Section:
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = ARMS.get(arm)
        texts = (own.formula, own.source) if own else (SL2A_FORMULA, SL2A_SOURCE)
        rows.append((arm, *texts))
    return Section("Arms", ("arm", "layer, z = W h + b", "from"), tuple(rows))
