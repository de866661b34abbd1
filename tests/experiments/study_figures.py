"""Figures of studies that have no file of tests of their own: geometry, vision, coordinates."""

import json
from pathlib import Path

import numpy as np

from experiments.geometry import figures as geometry
from experiments.geometry.tasks import pattern_tasks, xor_tasks
from experiments.sobolev.coordinates import figures as coordinates
from experiments.sobolev.coordinates.study import Cell as Representations
from experiments.vision import figures as vision
from experiments.vision.study import Cell
from experiments.vision.summary import MEASURES, differences

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


def draw_geometry(folder: Path, names: tuple[str, ...]) -> None:
    """All figures, for activations of these names, of made-up numbers."""
    tasks = [*pattern_tasks(), *xor_tasks((0.0, 0.5, 1.0), (0.0, 0.3))]
    ends = {f"{name}_before": [0.9, 0.8] for name in ("inputs", "labels")}
    means = {name: [0.2 + 0.1 * i, 0.3 + 0.1 * i] for i, name in enumerate(geometry.ALONG)}
    own = {task.name: means | ends for task in tasks}
    geometry.draw_all(folder, dict.fromkeys(names, own), tasks)


def draw_vision(folder: Path) -> None:
    """All figures, of the committed runs."""
    cells = [Cell.read(path) for path in sorted((RESULTS / "vision" / "cells").glob("*.json"))]
    found = [each for name in MEASURES for each in differences(cells, "relu", name)]
    vision.draw_all(folder, cells, found)


def draw_coordinates(folder: Path) -> None:
    """All figures, of the committed runs, whose networks stand in by noise."""
    root = RESULTS / "sobolev" / "coordinates" / "cells"
    cells = [
        Representations.of(json.loads(path.read_text()), path.stem)
        for path in sorted(root.glob("*.json"))
    ]
    coordinates.curves(folder / "curves", cells)
    pixels = np.random.default_rng(0).random((8, 8))
    for target in dict.fromkeys(cell.target for cell in cells):
        made = {cell.arm: pixels / 2 for cell in cells}
        coordinates.pictures(folder / target, cells, target, pixels, made)
