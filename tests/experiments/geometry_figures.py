"""Figures of geometry, of made-up numbers."""

from pathlib import Path

from experiments.geometry import figures
from experiments.geometry.tasks import pattern_tasks, xor_tasks


def draw_geometry(folder: Path, names: tuple[str, ...]) -> None:
    """All figures, for activations of these names."""
    tasks = [*pattern_tasks(), *xor_tasks((0.0, 0.5, 1.0), (0.0, 0.3))]
    ends = {f"{name}_before": [0.9, 0.8] for name in ("inputs", "labels")}
    means = {name: [0.2 + 0.1 * i, 0.3 + 0.1 * i] for i, name in enumerate(figures.ALONG)}
    own = {task.name: means | ends for task in tasks}
    figures.draw_all(folder, dict.fromkeys(names, own), tasks)
