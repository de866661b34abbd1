"""The program `python -m experiments.sobolev samples`."""

from dataclasses import replace
from pathlib import Path

from experiments.run.signals import GRACE_S, stop_request
from experiments.sobolev import fit_report, losses
from experiments.sobolev.options import FREE, SamplesOptions
from experiments.sobolev.store import Store
from experiments.sobolev.train import Contestant, Study, check_memory, perceptrons
from experiments.sobolev.train_program import line
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display


def run(options: SamplesOptions, workdir: Path, command: str, display: Display) -> None:
    """Fits, writes, and says what to look at; the same command again resumes."""
    store, every = Store(workdir, "samples"), contestants(options)
    losses.check(options, [(each.activation, each.size) for each in every])
    check_memory(options, every)
    store.open(options, free=FREE)
    pace = Pace(display)
    with stop_request(GRACE_S) as stop, stop.heeded():
        study = Study(options, store, stop, pace.tell)
        cells = study.run(
            every,
            lambda cell, n, of: pace.note(f"[{n}/{of}] {cell['size']} points: {line(cell)}"),
            display.note,
        )
    display.stop()
    title = "Networks of one size on more and more points"
    about = _about(options)
    display.note(
        fit_report.write(
            store, options, cells, command, title=title, about=about, axis="training points"
        )
    )
    display.note("Next:\n  python -m experiments.sobolev train --loss h1")


def contestants(options: SamplesOptions) -> list[Contestant]:
    """Each network with each number of points, few points first."""
    return [
        replace(each, size=points, points=points)
        for points in options.samples
        for each in perceptrons(options)
    ]


def _about(options: SamplesOptions) -> list[str]:
    return [
        f"Networks of {options.layers} hidden layers on [0,1]^{options.dim}, each the widest with"
        f" at most {options.sizes[0]} parameters. They are trained on"
        f" {', '.join(map(str, options.samples))} points, which is what the tables call their size;"
        " errors are measured on a grid. From points alone, errors of n times differentiable"
        " functions fall at best as points^(-n/d), where values have no noise.",
        "",
        fit_report.treatment(options),
    ]
