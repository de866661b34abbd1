"""Approximation in Sobolev spaces, constructed and trained: `python -m experiments.sobolev --help`.

python -m experiments.sobolev rates
python -m experiments.sobolev train --quick
python -m experiments.sobolev all
"""

import importlib
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.run.files import STDOUT, hand_over, try_json
from experiments.sobolev.construction_options import (
    QUICK_DEPTH,
    QUICK_IMITATE,
    QUICK_NORMED,
    QUICK_RATES,
    DepthOptions,
    ImitateOptions,
    NormedOptions,
    RatesOptions,
)
from experiments.sobolev.coordinates.arms import NAMES
from experiments.sobolev.coordinates.options import QUICK_COORDINATES, CoordinatesOptions
from experiments.sobolev.coordinates.targets import DISTANCES, IMAGES
from experiments.sobolev.options import (
    QUICK_REFINE,
    QUICK_SAMPLES,
    QUICK_TRAIN,
    Command,
    RefineOptions,
    SamplesOptions,
    TrainOptions,
)
from experiments.terminal import flags
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from polycom_jax._errors import unknown
from polycom_jax._fields import PathText
from polycom_jax.approximation.targets import TARGETS
from polycom_jax.table import ACTIVATIONS

PROG = "python -m experiments.sobolev"
ALL = "all"
REPORT = "report"
LISTS: Mapping[str, Iterable[str]] = {
    "targets": TARGETS,
    "activations": ACTIVATIONS,
    "targets of coordinates": (*IMAGES, *DISTANCES),
    "arms of coordinates": NAMES,
}


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


@dataclass(frozen=True)
class Run:
    """One of the runs whose results are committed.

    Attributes:
        study: the subcommand.
        words: its options; {out} is the folder of all runs' folders.
        full: further options, which --quick leaves as they are.
    """

    study: str
    words: tuple[str, ...] = ()
    full: tuple[str, ...] = ()


STUDIES: Mapping[str, Study] = {
    "rates": Study(
        "Build the networks of Theorem 3 over a range of N: error, size, slopes, theory's slopes.",
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
    "samples": Study(
        "Fit networks of one size to more and more points.",
        Command(SamplesOptions(), "runs/sobolev-samples"),
        Command(QUICK_SAMPLES, "runs/sobolev-samples-quick"),
        "experiments.sobolev.samples_program",
    ),
    "refine": Study(
        "Train constructed networks further, and the same wires and MLPs from random weights.",
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
    "normed": Study(
        "Build PolyNorm networks of fixed width: errors beside their bounds, and imitations.",
        Command(NormedOptions(), "runs/sobolev-normed"),
        Command(QUICK_NORMED, "runs/sobolev-normed-quick"),
        "experiments.sobolev.normed_program",
    ),
    "coordinates": Study(
        "Represent an image and a signed distance by networks of equal size: SIREN and others.",
        Command(CoordinatesOptions(), "runs/sobolev-coordinates"),
        Command(QUICK_COORDINATES, "runs/sobolev-coordinates-quick"),
        "experiments.sobolev.coordinates.program",
    ),
    "depth": Study(
        "Build networks of equal size, deeper and narrower: error against depth.",
        Command(DepthOptions(), "runs/sobolev-depth"),
        Command(QUICK_DEPTH, "runs/sobolev-depth-quick"),
        "experiments.sobolev.depth_program",
    ),
}


RUNS: Mapping[str, Run] = {
    "rates": Run("rates"),
    "train": Run("train"),
    "h1": Run("train", ("--loss", "h1", "--beside", "{out}/train/train.csv"), ("--sizes", "300")),
    "samples": Run("samples"),
    "refine": Run("refine"),
    "imitate": Run("imitate"),
    "normed": Run("normed"),
    "coordinates": Run("coordinates"),
    "pitch": Run("coordinates", ("--extent", "0.125")),
    "gradients": Run("coordinates", ("--extent", "0.125", "--loss", "h1")),
    "depth": Run("depth"),
}
"""Folder -> what `all` runs in it, in this order."""


@program
def main(argv: Sequence[str]) -> int:
    """Runs one study: CSV, JSON, plots, a Markdown report, and the next command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROG} STUDY [--quick] [--out DIR] [--OPTION ...]\n")
        for name, study in STUDIES.items():
            print(f"  {name:<12}{study.about}")
        print(f"  {ALL:<12}Run everything whose results are committed: {', '.join(RUNS)}.")
        print(f"  {REPORT:<12}Report on finished runs of coordinates in FOLDER; trains nothing.")
        print(
            f"\n{PROG} STUDY --help lists the options; --list prints studies, targets,"
            " activations and arms. --quick takes under a minute."
        )
        return 0 if argv else 2
    name, *words = argv if argv[0] != "--list" else ("rates", *argv)
    if name == ALL:
        return run_all(words)
    if name == REPORT:
        return importlib.import_module(STUDIES["coordinates"].program).again(words)
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    study = STUDIES[name]
    default = study.quick if "--quick" in words else study.default
    line = flags.CommandLine(
        f"sobolev {name}",
        f"{study.about} --quick starts from options that take under a minute.",
        old={"workdir": "out"} | {f"sobolev.{name}": name for name in flags.flatten(default)},
        lists={"studies": STUDIES, **LISTS},
    )
    chosen = line(default, [word for word in words if word != "--quick"])
    try_json(chosen.json)
    command, out = shlex.join(["python", "-m", "experiments.sobolev", *argv]), Path(chosen.out)
    module = importlib.import_module(study.program)
    with Display(aside=chosen.json == STDOUT) as display:
        module.run(chosen.sobolev, out, command, display)
    hand_over(chosen.json, out / f"{name}.json")
    return 0


@dataclass(frozen=True)
class Every:
    """All runs.

    Attributes:
        out: folder of their folders.
    """

    out: PathText = "runs/sobolev"


def run_all(words: Sequence[str]) -> int:
    """Every run with its options, or its study's quick ones; ends with the first that fails."""
    line = flags.CommandLine(
        f"sobolev {ALL}", "Run every study; --quick takes the options that take under a minute."
    )
    quick = "--quick" in words
    chosen = line(Every(), [word for word in words if word != "--quick"])
    begun, spent = _clock(), list[str]()
    for k, (name, run) in enumerate(RUNS.items(), start=1):
        print(f"\n[{k}/{len(RUNS)}] {name}: {STUDIES[run.study].about}", flush=True)
        before = _clock()
        options = [*run.words, *(["--quick"] if quick else run.full)]
        options = [word.replace("{out}", chosen.out) for word in options]
        code = main([run.study, *options, "--out", str(Path(chosen.out) / name)])
        if code:
            return code
        jax.clear_caches()  # each program takes memory maps, of which a process has so many
        spent.append(_since(before, name))
    print("\n" + "\n".join([*spent, _since(begun, "total")]))
    return 0


def _clock() -> tuple[float, float]:
    """Seconds on the wall, and of this process's processors."""
    return time.monotonic(), time.process_time()


def _since(before: tuple[float, float], what: str) -> str:
    wall, processors = (now - then for now, then in zip(_clock(), before, strict=True))
    return f"{what}: {wall:.0f} s, {processors:.0f} s of processor time"


if __name__ == "__main__":
    sys.exit(main())
