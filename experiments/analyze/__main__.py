"""Looks inside trained models: `python -m experiments.analyze --help`.

python -m experiments.analyze runs/tiny-poly_norm runs/tiny-swiglu
python -m experiments.analyze llama-folder --data text.txt
python -m experiments.analyze runs/tiny-poly_norm --steps all
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from etils import epath
from tyro.conf import Positional, arg

from experiments.analyze import figures, report
from experiments.analyze.along import ALL, along, chosen_steps, draw, section
from experiments.analyze.measure import measure
from experiments.analyze.opened import common_step, open_model, seed_of
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.run.model_loading import Split, Weights
from experiments.run.provenance import versions
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.paths import try_folder
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import page, print_section
from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.data.sources import names_files

LINE = CommandLine(
    "analyze",
    "Look inside trained models, side by side: ranks and spectra of weights, similarity of layers,"
    " activations, gradients, learned activation curves; and how these change along a training."
    " Hugging Face folders need --data.",
    old={"runs": "runs"},
)


@dataclass(frozen=True)
class AnalyzeConfig:
    """What to look into.

    Attributes:
        runs: folders of runs, or Hugging Face folders.
        checkpoint: checkpoint of every run: "latest", "best" (lowest held-out loss), or a step.
        weights: of the runs: "last", those of that step; "ema", their moving average, which runs
            with optim.ema_decay keep.
        steps: also follow the runs' checkpoints of these steps: "all" that are kept, or some.
        tokens: tokens of text that the models run on, in windows as long as the model's context,
            spread evenly over the text.
        data: text for all models, as for `experiments.pretrain --data`. Default: held-out text of
            each run; a Hugging Face folder has none.
        split: "heldout": only documents of --data that training on it leaves out; "all": every
            document, for files that no model was trained on.
        tokenizer: for folders without a tokenizer: "bytes", or the path of a tokenizer.json.
        text_field: as --data.text-field of `experiments.pretrain`. Default: that of the run for its
            own text, else "text".
        untrained: also measure a randomly initialised model of each config: dashed lines in the
            figures.
        out: folder for report.md, results.json and plots.
        json: also write results.json to this file, or to stdout (-).
    """

    runs: Annotated[tuple[PlaceText, ...], Positional, arg(metavar="[RUN ...]")] = (
        "runs/tiny-poly_norm",
    )
    checkpoint: str = "latest"
    weights: Weights = "last"
    steps: tuple[str, ...] = ()
    tokens: int = 4096
    data: PlaceText | None = None
    split: Split = "heldout"
    tokenizer: PlaceText | None = None
    text_field: str | None = None
    untrained: bool = True
    out: PlaceText = "runs/analysis"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.runs), "Name one or more folders of runs, as runs/tiny-poly_norm.")
        at_least(self, 1, "tokens")
        for name in ("tokenizer", "text_field"):
            value = getattr(self, name)
            require(
                value is None or self.data is not None,
                f"{name}={value!r} goes with data, which names a text.",
            )
        require(
            self.split == "heldout" or (self.data is not None and names_files(self.data)),
            f"split='all' goes with --data and files, came data={self.data}; leave it out.",
        )


@program
def main(argv: Sequence[str]) -> int:
    """Measures every run, prints tables side by side, writes report, numbers and figures."""
    config = LINE(AnalyzeConfig(), argv)
    try_json(config.json)
    command = shlex.join(["python", "-m", "experiments.analyze", *argv])
    out = storage.named(config.out)
    try_folder("--out", out / "plots")
    measured, folders = {}, names(config.runs)
    steps = {name: chosen_steps(own, config.steps) for name, own in folders.items() if config.steps}
    with Display(aside=config.json == STDOUT) as display:
        for name, folder in folders.items():
            model, batch = open_model(
                folder,
                tokens=config.tokens,
                checkpoint=config.checkpoint,
                weights=config.weights,
                data=config.data,
                split=config.split,
                tokenizer=config.tokenizer,
                text_field=config.text_field,
                tell=display.busy,
            )

            def tell(what: str, name: str = name) -> None:
                display.note(f"{name}: {what}")

            seed = seed_of(model) if config.untrained else None
            measured[name] = measure(model, batch, tell, seed=seed)
            if name in steps:
                how: Any = {"weights": config.weights, "kept": config.steps == (ALL,)}
                measured[name]["along"] = along(model, batch, steps[name], tell, **how)
            measured[name]["model"]["text"] = config.data or model.data.source
        runs = [folders[name] for name in measured if measured[name]["model"]["step"] is not None]
        notes = report.unlike(measured, common_step(runs))
        write(out, measured, {"command": command, **versions()}, notes, display)
        hand_over(config.json, out / "results.json")
    return 0


def names(runs: Sequence[str]) -> dict[str, epath.Path]:
    """The runs by the last part of their paths, or by the whole path where these are not unique."""
    folders = [storage.named(run) for run in dict.fromkeys(runs)]
    short = [folder.resolve().name for folder in folders]
    unique = len(set(short)) == len(short)
    return dict(zip(short if unique else map(str, folders), folders, strict=True))


def write(
    out: epath.Path,
    measured: Mapping[str, Any],
    about: Mapping[str, Any],
    notes: Sequence[str],
    display: Display,
) -> None:
    """Tables on the terminal; report.md, results.json and plots/ in the folder.

    `notes` are lines on differences between the runs other than what is compared.
    """
    drawn = figures.draw_all(out / "plots", measured)
    sections, title = report.sections(measured), "Inside " + ", ".join(measured)
    if all("along" in found for found in measured.values()):
        sections.append(section(measured))
        drawn.append(draw(out / "plots" / "along", measured))
    write_text(out / "report.md", page(title, about, sections, drawn, notes))
    write_json(out / "results.json", {"about": about, "runs": measured}, indent=None)
    for table in sections:
        print_section(display.console, table)
    for line in notes:
        display.note(line)
    display.note(
        f"Report: {out / 'report.md'}   Numbers: {out / 'results.json'}   Plots: {out / 'plots'}"
    )


if __name__ == "__main__":
    sys.exit(main())
