"""Asks whether hidden layers follow inputs or labels: `python -m experiments.geometry --help`.

python -m experiments.geometry
python -m experiments.geometry --activations tanh relu xielu mine.py:act
"""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.geometry import figures, report, summary
from experiments.geometry.study import MEASURES, Numbers, Plan, measure
from experiments.geometry.tasks import FAMILIES, Task, kernel_tasks, pattern_tasks, xor_tasks
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.run.named_activations import cell_names, chosen_by
from experiments.run.provenance import commit, cores, processor, versions
from experiments.run.settings import check_settings
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.pace import Pace
from experiments.terminal.paths import try_folder
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import page, print_section
from polycom_jax._errors import require, unknown
from polycom_jax._fields import PathText, check_fields
from polycom_jax.table import ACTIVATIONS

LINE = CommandLine(
    "geometry",
    "Do hidden layers take on the geometry of their inputs or of their labels? Networks with one"
    " hidden layer learn small binary tasks of known geometry, after Alleman, Lindsey and Fusi"
    " (ICLR 2024, arXiv 2401.13558): tanh follows labels, ReLU inputs. Ctrl-C ends it; the same"
    " command goes on.",
    lists={"families": FAMILIES, "activations": ACTIVATIONS, "measures": MEASURES},
)


LARGEST = 10.0
"""Separability beyond which input and label kernels are the same but for rounding; and noise."""


@dataclass(frozen=True)
class GeometryConfig:
    """What to train.

    Attributes:
        activations: names of --list, or FILE.py:NAME or MODULE:NAME for what
            polycom_jax.activation has made in a file, which is imported. With tanh and relu, the
            report says whether the published finding comes out.
        families: of tasks; --list names them.
        separabilities: of the family xor: 0 is XOR, and the classes lie apart by more at 1.
        noises: of the family xor: standard deviations of the noise on inputs in training.
        seeds: of points, initial values and noise: the same for all activations. At least 2.
        width: of the hidden layer.
        steps: updates in training, for each family. Default: 1000, of xor 5000.
        out: folder for report.md, results.json, plots, and what going on needs.
        json: a file for results.json, too; - for stdout.
    """

    activations: tuple[str, ...] = ("tanh", "relu", "gelu", "poly_relu", "poly_norm")
    families: tuple[str, ...] = tuple(FAMILIES)
    separabilities: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    noises: tuple[float, ...] = (0.0, 0.3)
    seeds: int = 10
    width: int = 128
    steps: int | None = None
    out: PathText = "runs/geometry"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 2, "seeds")  # an interval needs two
        at_least(self, 1, "steps")
        at_least(self, 0, "separabilities", "noises")
        for name in ("activations", "families", "separabilities", "noises"):
            values = getattr(self, name)
            require(
                len(values) > 0 and len(set(values)) == len(values),
                f"{name}={values} must name one or more, each once.",
            )
        for name in ("separabilities", "noises"):
            require(
                max(getattr(self, name)) <= LARGEST,
                f"{name}={getattr(self, name)} must be at most {LARGEST:g}.",
            )
        for family in self.families:
            if family not in FAMILIES:
                raise unknown("family", family, FAMILIES)
        # A fixed readout has as many units of each sign and label, and labels are one or two.
        require(
            self.width >= 4 and self.width % 4 == 0,
            f"width={self.width} must be a multiple of 4; nearest: {max(4, self.width // 4 * 4)}.",
        )

    def tasks(self) -> list[Task]:
        """All of them, in order."""
        made = {
            "patterns": pattern_tasks,
            "xor": lambda: xor_tasks(self.separabilities, self.noises),
            "kernel": kernel_tasks,
        }
        return [task for family in FAMILIES if family in self.families for task in made[family]()]


@program
def main(argv: Sequence[str]) -> int:
    """Trains and measures; prints tables, writes report, numbers and figures."""
    config = LINE(GeometryConfig(), argv)
    try_json(config.json)
    chosen = chosen_by(config.activations)
    out = Path(config.out)
    for folder in (out / "plots", out / "cells"):
        try_folder("--out", folder)
    keep_to(config, out)
    command = shlex.join(["python", "-m", "experiments.geometry", *argv])
    machine = {"processor": processor(), "cores": str(cores()), "commit": commit() or "unknown"}
    plan = Plan(chosen, config.tasks(), config.seeds, config.width, config.steps)
    with Display(aside=config.json == STDOUT) as display:
        names = cell_names(config.activations, chosen)
        measured = run(plan, names, out / "cells", display)
        display.stop()
        write(out, measured, plan.tasks, {"command": command, **versions(), **machine}, display)
        display.note(f"Next:\n  {next_command(config)}")
    hand_over(config.json, out / "results.json")
    return 0


def keep_to(config: GeometryConfig, out: Path) -> None:
    """Raises `InputError` where the folder holds networks of other settings."""
    settings = asdict(config)
    for free in ("activations", "families", "out", "json"):  # cells are named by the first two
        del settings[free]
    check_settings(
        out / "settings.json",
        settings,
        holds="a study with other settings",
        advice="Give the command that began it, or another --out.",
    )


def run(
    plan: Plan, names: Mapping[str, str], cells: Path, display: Display
) -> dict[str, dict[str, Numbers]]:
    """Activation -> task -> numbers; groups that are in the folder are not trained again."""
    groups = plan.groups()
    costs = [plan.cost(group) for _, group in groups]
    pace, measured, done = Pace(display), dict[str, dict[str, Numbers]](), 0.0
    for (name, group), cost in zip(groups, costs, strict=True):
        first = group.tasks[0]
        path = cells / f"{names[name]}-{first.family}-{first.labels}.json"
        doing = f"{name}: {first.family}, {len(group.tasks) * plan.seeds} networks"

        def tell(share: float, done: float = done, cost: float = cost, doing: str = doing) -> None:
            pace.tell((done + share * cost) / sum(costs), doing)

        if not path.exists():
            write_json(path, measure(group, tell), indent=None)
        found = json.loads(path.read_text(encoding="utf-8"))
        measured.setdefault(name, {}).update(_numbers(found))
        done += cost
        tell(0.0, done, 0.0)
    return measured


def _numbers(found: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, Numbers]:
    """JSON has null for what is no number."""
    return {
        task: {
            name: [math.nan if value is None else value for value in values]
            for name, values in own.items()
        }
        for task, own in found.items()
    }


def write(
    out: Path,
    measured: summary.Measured,
    tasks: Sequence[Task],
    about: Mapping[str, Any],
    display: Display,
) -> None:
    """Tables on the terminal; report.md, results.json and plots/ in the folder."""
    found, means = summary.findings(measured, tasks), summary.means(measured, tasks)
    references = [name for name in ("tanh", "relu") if name in measured]
    pairs = [
        (arm, reference) for arm in measured if arm not in references for reference in references
    ]
    beside = summary.differences(measured, tasks, pairs)
    drawn = figures.draw_all(out / "plots", measured, tasks)
    shown = report.sections(measured, tasks, found, means, beside)
    said = report.remarks(found, means)
    write_json(
        out / "results.json",
        summary.record(
            {
                "about": about,
                "measures": MEASURES,
                "finding": found,
                "means": means,
                "turns_beside": beside,
                "seeds": measured,
            }
        ),
        indent=None,
    )
    title = "Do hidden layers follow inputs or labels?"
    write_text(out / "report.md", page(title, about, shown, drawn, said))
    for section in shown:
        print_section(display.console, section)
    for line in said:
        display.note(line.replace("**", ""))
    display.note(
        f"Report: {out / 'report.md'}   Numbers: {out / 'results.json'}   Plots: {out / 'plots'}"
    )


def next_command(config: GeometryConfig) -> str:
    """Another activation in the same study: only it is trained."""
    rest = [name for name in ("silu", "relu2", "softplus") if name not in config.activations]
    words = ["python", "-m", "experiments.geometry", "--out", config.out]
    default = GeometryConfig()
    for name in ("families", "separabilities", "noises", "seeds", "width", "steps"):
        value = getattr(config, name)
        if value != getattr(default, name):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}", *map(str, values)]
    return shlex.join([*words, "--activations", *config.activations, *rest[:1]])


if __name__ == "__main__":
    sys.exit(main())
