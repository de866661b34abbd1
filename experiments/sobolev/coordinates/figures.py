"""Figures of a study: errors over steps, and what networks made of their targets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from experiments.run.statistics import mean_interval
from experiments.sobolev.coordinates.study import SHOWN_SEED, Cell
from experiments.sobolev.coordinates.summary import psnr, ranked
from experiments.sobolev.coordinates.targets import kind_of
from experiments.terminal.figures import COLOURS, panels
from polycom_jax.storage import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = Float[np.ndarray, "S S"]
COLUMNS = 6
"""Pictures in a row."""


def curves(path: Place, cells: Sequence[Cell]) -> Place:
    """A row for each target; errors at points trained on, and at those held out."""
    targets = list(dict.fromkeys(cell.target for cell in cells))
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    note = (
        "Lines: means over seeds that did not fail, of errors geometric ones; bands: 95 %"
        " intervals, of three or more. Each arm at its own rate."
    )
    size: Any = {"size": (3.7, 2.7), "columns": 2}
    with panels(path, 2 * len(targets), title="Over training", note=note, **size) as axes:
        places = iter(axes)
        for target in targets:
            image = kind_of(target) == "image"
            for part, title in (("train", "trained on"), ("held", "held out")):
                place = next(places)
                for cell in (cell for cell in cells if cell.target == target):
                    _line(place, cell, part, arms.index(cell.arm), image)
                label = "PSNR, dB" if image else "root mean square error"
                place.set(title=f"{target}, {title}", xlabel="step", ylabel=label)
                if not image:
                    place.set_yscale("log")
    return path


def _line(place: "Axes", cell: Cell, part: str, index: int, image: bool) -> None:
    runs = [run for run in cell.results() if not run.failed]
    if len(runs) < 2:
        return
    numbers = np.array([_heights(getattr(run, part), image) for run in runs])
    ends = np.array([mean_interval(x) for x in numbers.T]).T
    mean, low, high = ends if image else np.exp(ends)
    colour = COLOURS[index % len(COLOURS)]
    style = "-" if index < len(COLOURS) else "--"
    place.plot(runs[0].steps, mean, style, color=colour, label=cell.arm)
    if len(runs) > 2:  # an interval of two is wider than all else
        place.fill_between(runs[0].steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _heights(errors: Sequence[float], image: bool) -> list[float]:
    return [psnr(error) for error in errors] if image else np.log(errors).tolist()


def pictures(
    path: Place, cells: Sequence[Cell], target: str, pixels: Pixels, made: Mapping[str, Pixels]
) -> Place:
    """The target and what each arm made of it, the best first, each above its error.

    Args:
        path: without a suffix.
        cells: of the study.
        target: its name.
        pixels: the target at all pixels.
        made: arm -> the same of its network.
    """
    arms = [cell.arm for cell, _ in ranked(cells, target) if cell.arm in made]
    shown = {cell.arm: _caption(cell, target) for cell in cells if cell.target == target}
    columns = min(COLUMNS, 1 + len(arms))
    rows = -(-(1 + len(arms)) // columns)
    largest = 0.25 * float(np.ptp(pixels))
    note = (
        f"Seed {SHOWN_SEED}. Above: values, in a range that all share. Below: their absolute error,"
        f" black where it is 0, white from {largest:.2g} on; every second pixel in both directions"
        " was trained on."
    )
    title = f"{target}: the target and its representations"
    size: Any = {"size": (1.35, 1.55), "columns": columns}
    with panels(path, 2 * rows * columns, title=title, note=note, **size) as axes:
        for place in axes:
            place.set_axis_off()
        for k, arm in enumerate(["", *arms]):
            at = 2 * columns * (k // columns) + k % columns
            values = made[arm] if arm else pixels
            _show(axes[at], values, (float(pixels.min()), float(pixels.max())), target)
            axes[at].set_title(shown[arm] if arm else "target")
            if arm:
                _show(axes[at + columns], np.abs(values - pixels), (0.0, largest), "error")
    return path


def _caption(cell: Cell, target: str) -> str:
    """The arm, and the error of the run whose picture is shown, if it is among the results."""
    image = kind_of(target) == "image"
    errors = [run.held[-1] for run in cell.results() if run.seed == SHOWN_SEED]
    shown = [f"{psnr(error):.1f} dB" if image else f"{error:.2g}" for error in errors]
    return "\n".join([cell.arm, *shown])


def _show(place: "Axes", values: Pixels, span: tuple[float, float], what: str) -> None:
    low, high = span
    colours = "gray" if what == "error" or kind_of(what) == "image" else "RdBu"
    if colours == "RdBu":  # white is the boundary
        high = max(-low, high)
        low = -high
    place.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    if colours == "RdBu" and values.min() < 0 < values.max():
        place.contour(values, levels=[0.0], colors="black", linewidths=0.6)
