"""Figures of a study: curves over epochs, and differences to the reference."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.run.statistics import mean_interval
from experiments.terminal.figures import COLOURS, REFERENCE, panels
from experiments.vision.study import Cell
from experiments.vision.summary import MEASURES, Difference
from experiments.vision.train import Run
from polycom_jax.storage import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES: dict[str, Callable[[Run], Sequence[float]]] = {
    "training loss": lambda run: run.train_loss,
    "validation loss": lambda run: run.validation_loss,
    "validation accuracy": lambda run: run.validation_accuracy,
}


def draw_all(folder: Place, cells: Sequence[Cell], found: Sequence[Difference]) -> list[Place]:
    """Draws what there is something to draw of; the paths, without suffix."""
    names = list(dict.fromkeys(cell.activation for cell in cells))
    drawn = [_curves(folder / "curves", cells, names)]
    if any(each.found for each in found):
        drawn.append(_differences(folder / "differences", found, names))
    return drawn


def _curves(path: Place, cells: Sequence[Cell], names: Sequence[str]) -> Place:
    """A row for each model, a panel for each curve, a line for each activation."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    note = (
        "Lines: means over seeds; bands: 95 % intervals, of losses cut off at half of the mean."
        " Failed runs are left out."
    )
    size: Any = {"size": (3.2, 2.4), "columns": len(CURVES)}
    title = "Training, each activation at its own rate"
    with panels(path, len(models) * len(CURVES), title=title, note=note, **size) as axes:
        places = iter(axes)
        for model in models:
            for label in CURVES:
                place = next(places)
                for cell in (cell for cell in cells if cell.model == model):
                    _line(place, cell, label, names.index(cell.activation))
                place.set(title=model, xlabel="epoch", ylabel=label)
                if label.endswith("loss"):
                    place.set_yscale("log")
    return path


def _line(place: "Axes", cell: Cell, label: str, index: int) -> None:
    runs = [CURVES[label](run) for run in cell.results() if not run.failed]
    if len(runs) < 2:
        return
    mean, low, high = np.array([mean_interval(x) for x in np.array(runs).T]).T
    epochs = np.arange(1, len(mean) + 1)
    colour, style = COLOURS[index % len(COLOURS)], "-" if index < len(COLOURS) else "--"
    place.plot(epochs, mean, style, color=colour, label=cell.activation)
    floor = 0.5 * mean if label.endswith("loss") else low  # a logarithmic axis has no zero
    place.fill_between(epochs, np.maximum(low, floor), high, color=colour, alpha=0.15, linewidth=0)


def _differences(path: Place, found: Sequence[Difference], names: Sequence[str]) -> Place:
    """A row for each measure, a panel for each model, a mark for each activation."""
    models = list(dict.fromkeys(each.model for each in found))
    reference = found[0].reference
    note = f"Dashed: {reference}; left of it: better. Lines: 95 % intervals over paired seeds."
    size: Any = {"size": (3.2, 2.5), "columns": len(models)}
    title = f"Differences to {reference} on the test part"
    with panels(path, len(models) * len(MEASURES), title=title, note=note, **size) as axes:
        places = iter(axes)
        for measure in MEASURES:
            for model in models:
                place = next(places)
                own = [e for e in found if (e.measure, e.model) == (measure, model)]
                _marks(place, own, names)
                unit = "error, percentage points" if measure == "error" else "loss, nats"
                place.set(title=model, xlabel=unit)
    return path


def _marks(place: "Axes", own: Sequence[Difference], names: Sequence[str]) -> None:
    place.axvline(0, **REFERENCE)
    for y, each in enumerate(own):
        if each.found:
            colour = COLOURS[names.index(each.activation) % len(COLOURS)]
            ends = [[each.found.mean - each.found.low], [each.found.high - each.found.mean]]
            place.errorbar([each.found.mean], [y], xerr=ends, fmt="o", color=colour, capsize=3)
    place.set_yticks(range(len(own)), [each.activation for each in own])
    place.set_ylim(len(own) - 0.5, -0.5)
