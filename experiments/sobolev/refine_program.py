"""The program `python -m experiments.sobolev refine`."""

from pathlib import Path

from experiments.run.signals import GRACE_S, stop_request
from experiments.sobolev import fit_report, losses
from experiments.sobolev.options import FREE, RefineOptions
from experiments.sobolev.refine import AS_BUILT, REWIRED, TRAINED, as_built, contestants, networks
from experiments.sobolev.store import Store
from experiments.sobolev.train import Study, check_memory
from experiments.sobolev.train_program import line
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display


def run(options: RefineOptions, workdir: Path, command: str, display: Display) -> None:
    """Builds, fits, writes, and says what to look at; the same command again resumes."""
    losses.check(options, networks(options))
    store, pace = Store(workdir, "refine"), Pace(display)
    with stop_request(GRACE_S) as stop, stop.heeded():
        study = Study(options, store, stop, pace.tell)
        every = contestants(options, study.targets)
        check_memory(options, every)
        store.open(options, free=FREE)
        cells = study.run(
            every, lambda cell, n, of: pace.note(f"[{n}/{of}] {line(cell)}"), display.note
        )
    display.stop()
    cells = [*as_built(study, every), *cells]
    title = "Constructed networks, trained, beside others of their size"
    found = fit_report.write(store, options, cells, command, title=title, about=_about(options))
    display.note(found)
    display.note("Next:\n  python -m experiments.sobolev train")


def _about(options: RefineOptions) -> list[str]:
    cells = ", ".join(str(options.construction(size)) for size in options.sizes)
    return [
        f"`{AS_BUILT}` is Theorem 3's network for the target, n = {options.order},"
        f" d = {options.dim}, N = {cells}. `{TRAINED}` goes on from there and `{REWIRED}` from"
        " random weights and biases; both train exactly the numbers that stand in the construction"
        f" (its size c(n, d) (N + 1)^d). The MLPs of {options.layers} hidden layers have at most as"
        " many parameters.",
        "",
        fit_report.treatment(options),
    ]
