"""The program `python -m experiments.sobolev train`."""

from pathlib import Path
from typing import Any

from experiments.run.signals import GRACE_S, stop_request
from experiments.sobolev import fit_report, losses
from experiments.sobolev.options import FREE, TrainOptions
from experiments.sobolev.store import Store
from experiments.sobolev.train import Study, check_memory, perceptrons
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display


def run(options: TrainOptions, workdir: Path, command: str, display: Display) -> None:
    """Fits, writes, and says what to look at; the same command again resumes."""
    store, every = Store(workdir, "train"), perceptrons(options)
    losses.check(options, [(each.activation, each.size) for each in every])
    check_memory(options, every)
    store.open(options, free=FREE)
    pace = Pace(display)
    with stop_request(GRACE_S) as stop, stop.heeded():
        study = Study(options, store, stop, pace.tell)
        cells = study.run(
            every, lambda cell, done, of: pace.note(f"[{done}/{of}] {line(cell)}"), display.note
        )
    display.stop()
    title = "Trained networks of equal size"
    found = fit_report.write(store, options, cells, command, title=title, about=_about(options))
    display.note(found)
    longer = f"--steps {4 * options.steps} --out {workdir}-long"
    display.note(f"Next:\n  python -m experiments.sobolev train {longer}")


def _about(options: TrainOptions) -> list[str]:
    return [
        f"Networks of {options.layers} hidden layers on [0,1]^{options.dim}, each the widest with"
        f" at most {', '.join(map(str, options.sizes))} parameters, all started the same way.",
        "",
        fit_report.treatment(options),
    ]


def line(cell: dict[str, Any]) -> str:
    """What came of a cell, for the screen."""
    errors = sorted(run["l2"] for run in cell["runs"])
    return (
        f"{cell['activation']}, {cell['parameters']} parameters, learning rate"
        f" {cell['learning_rate']:.1e}: median L2 error {errors[len(errors) // 2]:.2e}"
    )
