"""Looks inside trained models: `python -m experiments.analyze --help`.

python -m experiments.analyze runs/tiny-poly_norm runs/tiny-swiglu
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cli
from experiments.analyze import figures, report
from experiments.analyze.measure import measure
from experiments.progress import Display
from experiments.tables import finite, print_section
from experiments.trained import Trained, load_trained
from experiments.workdir import Workdir, data_record, versions, whole
from polycom_jax._errors import require
from polycom_jax.data import prepare
from polycom_jax.data.windows import gather
from polycom_jax.training.loss import Batch

ABOUT = (
    "Look inside trained models, side by side: ranks and spectra of weights, similarity of layers,"
    " activations, gradients, learned activation curves. Folders of runs (or of models that"
    " experiments.convert brought in) may stand first."
)


@dataclass(frozen=True)
class AnalyzeConfig:
    """What to look into.

    Attributes:
        runs: folders of runs.
        checkpoint: "latest", "best" (lowest held-out loss) or a step; the same of all runs.
        tokens: held-out tokens to run the models on, in whole windows spread evenly over the text
            that each run held out itself.
        out: folder for report.md, results.json and plots.
    """

    runs: tuple[str, ...] = ("runs/tiny-poly_norm",)
    checkpoint: str = "latest"
    tokens: int = 4096
    out: str = "runs/analysis"

    def __post_init__(self) -> None:
        require(bool(self.runs), "Name one or more folders of runs, as runs/tiny-poly_norm.")
        require(self.tokens >= 1, f"tokens={self.tokens} must be at least 1.")


@cli.program
def main(argv: Sequence[str]) -> int:
    """Measures every run, prints tables side by side, writes report, numbers and figures."""
    words = list(argv)
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    default = AnalyzeConfig()
    settings = cli.read_flags([*(["--runs"] if first else []), *words], cli.flatten(default), {})
    config = cli.parse(default, settings, prog="python -m experiments.analyze", about=ABOUT)
    command = shlex.join(["python", "-m", "experiments.analyze", *argv])
    with Display() as display:
        measured = {}
        for name, folder in names(config.runs).items():
            trained, batch = open_run(Workdir(folder), config, display)
            measured[name] = measure(
                trained, batch, lambda what, name=name: display.note(f"{name}: {what}")
            )
        write(Path(config.out), measured, {"command": command, **versions()}, display)
    return 0


def names(runs: Sequence[str]) -> dict[str, Path]:
    """The runs by the last part of their paths, or by the whole path where these are not unique."""
    folders = [Path(run) for run in dict.fromkeys(runs)]
    short = [folder.resolve().name for folder in folders]
    unique = len(set(short)) == len(short)
    return dict(zip(short if unique else map(str, folders), folders, strict=True))


def open_run(workdir: Workdir, config: AnalyzeConfig, display: Display) -> tuple[Trained, Batch]:
    """A run's model, and windows of the text that it held out.

    Raises:
        InputError: no run there, or its text is not what it was.
    """
    trained = load_trained(workdir, config.checkpoint)
    model = trained.config.model
    asked = workdir.record().get("vocab_size_asked", model.vocab_size)
    corpus = prepare(trained.config.data, vocab_size=asked, progress=display.busy)
    workdir.check_data(data_record(corpus))
    length = model.context_length
    every = -(-corpus.heldout.num_targets // length)
    count = min(every, -(-config.tokens // length))
    windows = np.linspace(0, every, count, endpoint=False).astype(np.int64)
    return trained, jax.device_put(gather(corpus.heldout, windows, length))


def write(
    out: Path, measured: Mapping[str, Any], about: Mapping[str, Any], display: Display
) -> None:
    """Tables on the terminal; report.md, results.json and plots/ in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw_all(out / "plots", measured)
    with whole(out / "report.md") as file:
        file.write_text(report.markdown(measured, about, drawn), encoding="utf-8")
    record = finite({"about": dict(about), "runs": dict(measured)})
    with whole(out / "results.json") as file:
        file.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    for section in report.sections(measured):
        print_section(display.console, section)
    display.note(
        f"Report: {out / 'report.md'}   Numbers: {out / 'results.json'}   Plots: {out / 'plots'}"
    )


if __name__ == "__main__":
    sys.exit(main())
