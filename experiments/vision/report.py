"""A study as tables."""

from collections.abc import Sequence

from experiments.run.statistics import Paired
from experiments.terminal.tables import Section
from experiments.vision.study import Cell
from experiments.vision.summary import MEASURES, Difference, mean_of, values

DIGITS = {"error": 2, "loss": 4}


def sections(cells: Sequence[Cell], found: Sequence[Difference]) -> list[Section]:
    """All tables."""
    return [_results(cells), *([_differences(found)] if found else []), _rates(cells)]


def _results(cells: Sequence[Cell]) -> Section:
    rows = []
    for cell in cells:
        runs = cell.results()
        rows.append(
            (
                cell.model,
                cell.activation,
                f"{cell.parameters:,}",
                f"{cell.searched.best:g}",
                *(_mean(cell, measure) for measure in MEASURES),
                f"{len(runs)}",
                f"{sum(run.failed for run in runs)}",
            )
        )
    return Section(
        "On the test part",
        ("model", "activation", "parameters", "rate", "error", "loss", "seeds", "failed"),
        tuple(rows),
        (
            " ".join(f"{name.capitalize()}: {about}." for name, about in MEASURES.items())
            + " Means over seeds that did not fail, 95 % intervals.",
        ),
    )


def _mean(cell: Cell, measure: str) -> str:
    mean, digits = mean_of(values(cell.results(), measure)), DIGITS[measure]
    if mean.mean != mean.mean:
        return "none"
    return f"{_shown(mean.mean, digits)} ± {_shown((mean.high - mean.low) / 2, digits)}"


def _shown(value: float, digits: int) -> str:
    """In powers of ten where a run has come far from where it began, without failing."""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.2g}"


def _differences(found: Sequence[Difference]) -> Section:
    rows = []
    for each in (each for each in found if each.measure == "error"):
        other = next(o for o in found if o.measure == "loss" and _place(o) == _place(each))
        cells = (*_cells(each), *_cells(other))
        rows.append((each.model, f"{each.activation} - {each.reference}", *cells, each.verdict))
    return Section(
        f"Beside {found[0].reference}",
        ("model", "difference", "error", "p", "Holm", "loss", "p", "Holm", "errors are"),
        tuple(rows),
        (
            "Below zero: better than the reference. Seeds are paired: equal initial values where"
            " names and shapes of parameters agree, equal order of images. 95 % intervals; p of the"
            " sign-flip test, then by Holm over all rows of a measure, those"
            " that could not be compared included.",
        ),
    )


def _place(each: Difference) -> tuple[str, str]:
    return each.model, each.activation


def _cells(each: Difference) -> tuple[str, str, str]:
    if each.found is None:
        return "none", "", ""
    shown = _signed(each.found, DIGITS[each.measure])
    return shown, f"{each.found.p:.2g}", f"{each.adjusted:.2g}"


def _signed(found: Paired, digits: int) -> str:
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _rates(cells: Sequence[Cell]) -> Section:
    rows = []
    for cell in cells:
        search = cell.searched
        tried = zip(search.rates, search.losses, strict=True)
        shown = ", ".join(f"{rate:g}: {loss:.4g}" for rate, loss in tried)
        rows.append((cell.model, cell.activation, shown, "yes" if search.at_edge else "no"))
    return Section(
        "How rates were chosen",
        ("model", "activation", "rate: loss on the validation part", "best at the edge"),
        tuple(rows),
        (
            "Means over the search's seeds, which the results do not use. The grid grows by its"
            " outermost ratio while its best is at an edge.",
        ),
    )
