"""Asks whether activations matter beyond language: `python -m experiments.vision --help`.

python -m experiments.vision
python -m experiments.vision --data cifar10 --resnet.blocks 3 --shift 4 --flip --models resnet
python -m experiments.vision report experiments/results/vision
"""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from experiments.run.compiled import cache_compiled
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.run.named_activations import cell_names, chosen_by
from experiments.run.provenance import commit, cores, processor, versions
from experiments.run.settings import check_settings
from experiments.terminal.checks import at_least
from experiments.terminal.flags import NO_PREFIX, CommandLine, replaced
from experiments.terminal.pace import Pace
from experiments.terminal.paths import try_folder
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import page, print_section
from experiments.vision import figures, report, summary
from experiments.vision.images import DIGITS, load
from experiments.vision.resnet import ResNetConfig
from experiments.vision.study import MODELS, Cell, Plan, settings_of
from experiments.vision.train import RecipeConfig
from experiments.vision.vit import VitConfig
from polycom_jax._errors import InputError, require, unknown
from polycom_jax._fields import PathText, check_fields
from polycom_jax.table import ACTIVATIONS, Activation

LINE = CommandLine(
    "vision",
    "Do activations differ beyond language? Residual networks and a vision transformer learn to"
    " classify images, each activation at its own learning rate, seeds paired. Ctrl-C ends it; the"
    " same command goes on. `vision report FOLDER` makes the report again and trains nothing.",
    lists={"models": MODELS, "activations": ACTIVATIONS},
)
REPORT = CommandLine("vision report", "Report on finished runs. Trains nothing.")
QUESTION = "Do activations differ in image classification?"


@dataclass(frozen=True)
class VisionConfig:
    """What to train.

    Attributes:
        data: digits (scikit-learn's, 8 x 8 pixels), a TFDS name for image classification such as
            cifar10, or a folder that TFDS prepared. It is kept in memory. Where there is no test or
            validation split, a fifth of the images each is drawn for it, the same in every study.
        models: of --list: residual networks with activations after and before the addition, and a
            vision transformer.
        activations: names of --list, or FILE.py:NAME or MODULE:NAME for what
            polycom_jax.activation has made in a file, which is imported. Gated ones are for vit
            alone.
        reference: the activation that the others are compared with.
        learning_rates: peak rates that each search begins with: ascending, at least three. The best
            is chosen by the loss on the validation part.
        search_seeds: runs at each of these rates; their seeds are not used for the results.
        seeds: runs of each activation, with seeds 0 to seeds - 1; a seed sets initial values and
            the order of images. At least 2.
        recipe: how networks are trained.
        resnet: size of the residual networks.
        vit: size of the vision transformer.
        out: folder for report.md, results.json, plots, and the runs.
        json: a file for results.json, too; - for stdout.
    """

    data: str = DIGITS
    models: tuple[str, ...] = tuple(MODELS)
    activations: tuple[str, ...] = (
        *("relu", "gelu", "silu", "relu2", "poly_relu", "poly_norm"),
        "swiglu",
    )
    reference: str = "relu"
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    search_seeds: int = 1
    seeds: int = 5
    recipe: Annotated[RecipeConfig, NO_PREFIX] = field(default_factory=RecipeConfig)
    resnet: ResNetConfig = field(default_factory=ResNetConfig)
    vit: VitConfig = field(default_factory=VitConfig)
    out: PathText = "runs/vision"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 2, "seeds")  # an interval needs two
        at_least(self, 1, "search_seeds")
        for name in ("models", "activations"):
            values = getattr(self, name)
            require(
                len(values) > 0 and len(set(values)) == len(values),
                f"{name}={values} must name one or more, each once.",
            )
        for model in self.models:
            if model not in MODELS:
                raise unknown("model", model, MODELS)
        rates = self.learning_rates
        ascending = sorted(set(rates)) == list(rates) and len(rates) >= 3
        require(
            ascending and min(rates) > 0 and max(rates) < math.inf,
            f"learning_rates={rates} must be three or more positive numbers, ascending.",
        )


@dataclass(frozen=True)
class ReportConfig:
    """Runs to report on.

    Attributes:
        folder: of a study.
        json: also write results.json to this file, or to stdout (-).
    """

    folder: Annotated[PathText, Positional, arg(metavar="[FOLDER]")] = VisionConfig.out
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@program
def main(argv: Sequence[str]) -> int:
    """Trains and compares; prints tables, writes report, numbers and figures."""
    if argv and argv[0] == "report":
        return again(argv[1:])
    config = LINE(VisionConfig(), argv)
    try_json(config.json)
    chosen = chosen_by(config.activations)
    if config.reference not in chosen:
        raise unknown("reference among --activations", config.reference, chosen)
    out = Path(config.out)
    for folder in (out / "plots", out / "cells"):
        try_folder("--out", folder)
    cache_compiled(None)
    with Display(aside=config.json == STDOUT) as display:
        plan = planned(config, chosen, display)
        about = {
            "command": shlex.join(["python", "-m", "experiments.vision", *argv]),
            **versions(),
            "processor": processor(),
            "cores": str(cores()),
            "commit": commit() or "unknown",
            "reference": config.reference,
        }
        cells = train(plan, cell_names(config.activations, chosen), out, about, display)
        display.stop()
        write(out, cells, about, display)
        display.note(f"Next:\n  {next_command(argv, config)}")
    hand_over(config.json, out / "results.json")
    return 0


def planned(config: VisionConfig, chosen: Mapping[str, Activation], display: Display) -> Plan:
    """Reads the data."""
    display.busy(f"Reading {config.data}")
    return Plan(
        config.models,
        chosen,
        load(config.data, display.note),
        (config.resnet, config.vit),
        config.recipe,
        config.learning_rates,
        config.search_seeds,
        config.seeds,
    )


def train(
    plan: Plan, names: Mapping[str, str], out: Path, about: Mapping[str, Any], display: Display
) -> list[Cell]:
    """All cells; runs that are in the folder are not trained again."""
    trainers = plan.trainers()
    check_settings(
        out / "settings.json",
        settings_of(plan),
        holds="a study with other settings",
        advice="Give the command that began it, or another --out.",
    )
    write_json(out / "about.json", about)
    pace, cells = Pace(display), list[Cell]()
    for index, (model, act, trainer) in enumerate(trainers):
        path = out / "cells" / f"{model}-{names[act]}.json"
        cell = Cell.read(path) if path.exists() else Cell(model, act, trainer.parameters)

        def tell(share: float, doing: str, index: int = index) -> None:
            pace.tell((index + share) / len(trainers), doing)

        plan.fill(cell, trainer, path, tell)
        cells.append(cell)
    pace.tell(1.0, "report")
    return cells


def again(argv: Sequence[str]) -> int:
    """Makes the report of a folder from its runs."""
    config = REPORT(ReportConfig(), argv)
    try_json(config.json)
    folder = Path(config.folder)
    paths = sorted((folder / "cells").glob("*.json"))
    found = [cell for cell in map(Cell.read, paths) if cell.runs and cell.results()]
    require(bool(found), f"{folder} holds no finished runs of a study: {folder / 'cells'}.")
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'about.json'} cannot be read: {error}.") from error
    with Display(aside=config.json == STDOUT) as display:
        write(folder, found, about, display)
    hand_over(config.json, folder / "results.json")
    return 0


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """In the order of `MODELS` and of the table, whatever the command said; users' own last."""
    models, table = list(MODELS), list(ACTIVATIONS)

    def place(cell: Cell) -> tuple[int, int, str]:
        known = cell.activation in table
        at = table.index(cell.activation) if known else len(table)
        return models.index(cell.model), at, cell.activation

    return sorted(cells, key=place)


def write(out: Path, cells: Sequence[Cell], about: Mapping[str, Any], display: Display) -> None:
    """Tables on the terminal; report.md, results.json and plots/ in the folder."""
    reference, cells = str(about["reference"]), ordered(cells)
    found = [
        each
        for measure in summary.MEASURES
        for each in summary.differences(cells, reference, measure)
    ]
    drawn = figures.draw_all(out / "plots", cells, found)
    shown, said = report.sections(cells, found), summary.remarks(cells, found, reference)
    write_json(out / "results.json", {"about": about, **summary.record(cells, found)}, indent=None)
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    commits = sorted({run.commit or "not known" for cell in cells for run in cell.runs})
    told = {
        **about,
        "commit of the runs": ", ".join(commits),
        **{name: _words(value) for name, value in settings.items()},
    }
    write_text(out / "report.md", page(QUESTION, told, shown, drawn, said))
    for section in shown:
        print_section(display.console, section)
    for line in said:
        display.note(line.replace("**", ""))
    display.note(
        f"Report: {out / 'report.md'}   Numbers: {out / 'results.json'}   Plots: {out / 'plots'}"
    )


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)


def next_command(argv: Sequence[str], config: VisionConfig) -> str:
    """More seeds in the same folder: what is there is kept."""
    words = replaced(argv, {"--seeds": 2 * config.seeds})
    return shlex.join(["python", "-m", "experiments.vision", *words])


if __name__ == "__main__":
    sys.exit(main())
