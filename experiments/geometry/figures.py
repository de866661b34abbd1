"""Figures of a study: the plane of alignments, and measures along separability."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.geometry.study import Numbers
from experiments.geometry.summary import Mean, Measured, by_kind, mean_of, seed_means
from experiments.geometry.tasks import Task
from experiments.terminal.figures import COLOURS, MARKERS, REFERENCE, panels
from polycom_jax.storage import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALONG: Mapping[str, str] = {
    "inputs": "alignment with inputs",
    "labels": "alignment with labels",
    "parallelism": "parallelism score",
    "ccgp": "CCGP",
}
"""Measures of the second figure -> labels of their axes."""


def draw_all(folder: Place, measured: Measured, tasks: Sequence[Task]) -> list[Place]:
    """Draws all that there is something to draw in; the paths, without suffix."""
    figures = {"plane": _plane, "separability": _separability}
    return [folder / name for name, draw in figures.items() if draw(folder / name, measured, tasks)]


def _look(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def _plane(path: Place, measured: Measured, tasks: Sequence[Task]) -> bool:
    """A panel for each kind of tasks: an activation's mean as a cross, tasks as faint marks."""
    kinds = by_kind(tasks)
    title = "Where hidden layers are: alignment with inputs and with labels"
    note = (
        "Large marks: means over tasks, with 95 % intervals over seeds; faint ones: single tasks."
        " Both kernels are made orthogonal. Dashed: mixtures of the two kernels, and nothing lies"
        " beyond. Grey: as initialised."
    )
    size: Any = {"size": (3.4, 3.3), "columns": 3, "shared": "xy"}
    with panels(path, len(kinds), title=title, note=note, **size) as axes:
        for (kind, names), place in zip(kinds.items(), axes, strict=True):
            _frame(place, kind)
            for index, (act, own) in enumerate(measured.items()):
                _mark(place, own, names, {**_look(index), "label": act})
    return True


def _frame(place: "Axes", kind: str) -> None:
    turn = np.linspace(0, np.pi / 2, 100)
    place.plot(np.cos(turn), np.sin(turn), **REFERENCE)
    place.set(
        title=kind,
        xlabel="alignment with inputs",
        ylabel="alignment with labels",
        xlim=(-0.05, 1.08),
        ylim=(-0.05, 1.08),
    )


def _mark(
    place: "Axes", own: Mapping[str, Numbers], names: Sequence[str], look: Mapping[str, Any]
) -> None:
    faint = {**look, "label": None, "linestyle": "", "alpha": 0.3, "markersize": 3}
    for name in names:
        x, y = (mean_of(own[name][measure]).mean for measure in ("inputs", "labels"))
        place.plot([x], [y], **faint)
    x, y = (mean_of(seed_means(own, names, measure)) for measure in ("inputs", "labels"))
    start = [
        mean_of(seed_means(own, names, f"{measure}_before")).mean
        for measure in ("inputs", "labels")
    ]
    place.plot(*([each] for each in start), ".", color="0.6", markersize=4, zorder=1)
    ends = {"xerr": _half(x), "yerr": _half(y)}
    place.errorbar([x.mean], [y.mean], **ends, **look, linestyle="", markersize=6, capsize=2)


def _half(mean: Mean) -> float:
    return (mean.high - mean.low) / 2


def _separability(path: Place, measured: Measured, tasks: Sequence[Task]) -> bool:
    """A row for each noise, a panel for each measure: lines over separability with bands."""
    found = _steps(tasks)
    noises = [noise for noise, own in found.items() if len(own) > 1]
    if not noises:
        return False
    title = "XOR, made separable by steps"
    note = "Lines: means over seeds; bands: 95 % intervals. At 0 no plane separates the classes."
    count = len(ALONG) * len(noises)
    size: Any = {"size": (3.0, 2.5), "columns": len(ALONG), "shared": "x"}
    with panels(path, count, title=title, note=note, **size) as axes:
        cells = [(noise, measure) for noise in noises for measure in ALONG]
        for (noise, measure), place in zip(cells, axes, strict=True):
            for index, (act, own) in enumerate(measured.items()):
                values = [mean_of(own[task.name][measure]) for task in found[noise].values()]
                _line(place, list(found[noise]), values, {**_look(index), "label": act})
            place.set(
                title=f"training noise {noise:g}", xlabel="separability", ylabel=ALONG[measure]
            )
    return True


def _steps(tasks: Iterable[Task]) -> dict[float, dict[float, Task]]:
    """Noise -> separability -> task, of those of XOR."""
    found: dict[float, dict[float, Task]] = {}
    for task in tasks:
        if task.separability is not None:
            found.setdefault(task.noise, {})[task.separability] = task
    return {noise: dict(sorted(own.items())) for noise, own in found.items()}


def _line(
    place: "Axes", x: Sequence[float], means: Sequence[Mean], look: Mapping[str, Any]
) -> None:
    place.plot(x, [mean.mean for mean in means], **look, markersize=3)
    low, high = [mean.low for mean in means], [mean.high for mean in means]
    place.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
