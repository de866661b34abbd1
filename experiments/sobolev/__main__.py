"""Approximation in Sobolev spaces, constructed and trained: `python -m experiments.sobolev --help`.

python -m experiments.sobolev rates
python -m experiments.sobolev train --quick
"""

import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.sobolev.options import (
    QUICK_IMITATE,
    QUICK_RATES,
    QUICK_REFINE,
    QUICK_TRAIN,
    Command,
    ImitateOptions,
    RatesOptions,
    RefineOptions,
    TrainOptions,
)
from experiments.terminal import flags
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from polycom_jax._errors import unknown

PROG = "python -m experiments.sobolev"


@dataclass(frozen=True)
class Study:
    """A subcommand.

    Attributes:
        about: one sentence.
        default: what it takes.
        quick: the same with --quick.
        program: module with `run(options, workdir, command, display)`.
    """

    about: str
    default: Command
    quick: Command
    program: str


STUDIES: Mapping[str, Study] = {
    "rates": Study(
        "Build the networks of Theorem 3 over a range of N: error, size, slopes beside theory's.",
        Command(RatesOptions(), "runs/sobolev-rates"),
        Command(QUICK_RATES, "runs/sobolev-rates-quick"),
        "experiments.sobolev.rates_program",
    ),
    "train": Study(
        "Fit networks of equal size with different activations to targets of each smoothness.",
        Command(TrainOptions(), "runs/sobolev-train"),
        Command(QUICK_TRAIN, "runs/sobolev-train-quick"),
        "experiments.sobolev.train_program",
    ),
    "refine": Study(
        "Train on from constructed networks, beside their wires at random and MLPs of that size.",
        Command(RefineOptions(), "runs/sobolev-refine"),
        Command(QUICK_REFINE, "runs/sobolev-refine-quick"),
        "experiments.sobolev.refine_program",
    ),
    "imitate": Study(
        "Build ReLU networks that imitate PolyReLU networks: size and depth against eps.",
        Command(ImitateOptions(), "runs/sobolev-imitate"),
        Command(QUICK_IMITATE, "runs/sobolev-imitate-quick"),
        "experiments.sobolev.imitate_program",
    ),
}


@program
def main(argv: Sequence[str]) -> int:
    """Runs one study: CSV, JSON, plots, a Markdown report, and the next command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROG} STUDY [--quick] [--workdir DIR] [--sobolev.OPTION ...]\n")
        for name, study in STUDIES.items():
            print(f"  {name:<10}{study.about}")
        print(f"\n{PROG} STUDY --help lists the options. --quick takes under a minute.")
        return 0 if argv else 2
    name, *words = argv
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    study, quick = STUDIES[name], "--quick" in words
    words = [word for word in words if word != "--quick"]
    default = study.quick if quick else study.default
    settings = flags.read_flags(words, flags.flatten(default), _aliases(default.sobolev))
    text = f"{study.about}\n\n--quick starts from options that take under a minute."
    chosen = flags.parse(default, settings, prog=f"{PROG} {name}", about=text)
    command = shlex.join(["python", "-m", "experiments.sobolev", *argv])
    module = importlib.import_module(study.program)
    with Display() as display:
        module.run(chosen.sobolev, Path(chosen.workdir), command, display)
    return 0


def _aliases(options: Any) -> dict[str, str]:
    """Every option's short name: `--seeds` for `--sobolev.seeds`."""
    return {name: f"sobolev.{name}" for name in flags.flatten(options)}


if __name__ == "__main__":
    sys.exit(main())
