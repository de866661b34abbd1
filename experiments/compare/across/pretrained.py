"""Finished runs of `pretrain` as a study: `python -m experiments.compare pretrained --help`.

python -m experiments.compare pretrained runs/110m-swiglu-0 runs/110m-poly_norm-0 --out runs/110m
python -m experiments.compare pretrained gs://BUCKET/runs
"""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from experiments.compare.across import report
from experiments.compare.across.cells import Cell, arm_runs
from experiments.compare.across.pretrained_run import Pretrained
from experiments.compare.arms import Arm
from experiments.compare.runs import RunKey
from experiments.compare.studies import REFERENCE
from experiments.run.files import STDOUT, hand_over, try_json
from experiments.run.folder import Workdir
from experiments.run.metrics import series
from experiments.run.rate_search import FIRST_SEED, shared_seeds
from experiments.terminal.flags import CommandLine
from experiments.terminal.paths import try_folder
from experiments.terminal.progress import Display
from experiments.terminal.tables import Section
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.storage import Place
from polycom_jax.table import ActivationOptions

OF_SIZE = frozenset(
    f"model.{name}" for name in (
        "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "gated_width",
        "tie_embeddings",
    )
) | {"run.steps"}  # fmt: skip
"""What tells sizes and lengths apart."""
OF_LENGTH = frozenset({"optim.warmup_steps", "optim.decay_steps"})
"""What else runs of different sizes and lengths may differ in, and those of one may not."""


@dataclass(frozen=True)
class PretrainedConfig:
    """Runs that differ in activation, seed, rate, size and length alone.

    Attributes:
        runs: folders of runs of `pretrain`, or folders of such folders. Those of equal seed are
            pairs; seeds from 1000000 on are for choosing an activation's learning rate.
        out: folder for scaling.md, scaling.json and plots.
        json: also write scaling.json to this file, or to stdout (-).
    """

    runs: Annotated[tuple[PlaceText, ...], Positional, arg(metavar="[RUN ...]")] = ("runs",)
    out: PlaceText = "runs/compare-pretrained"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.runs), "Name folders of runs, or a folder of them.")


LINE = CommandLine(
    "compare pretrained",
    "Report on finished runs of `pretrain`, paired by seed: differences to swiglu, fits, where arms"
    " cross. Trains nothing.",
)


def main(argv: Sequence[str]) -> int:
    """Reads, compares, fits, writes."""
    config = LINE(PretrainedConfig(), argv)
    try_json(config.json)
    command = shlex.join(["python", "-m", "experiments.compare", "pretrained", *argv])
    out = storage.named(config.out)
    with Display(aside=config.json == STDOUT) as display:
        display.busy("reading runs")
        runs = [Pretrained.read(root) for root in roots(config.runs)]
        cells = cells_of(runs)
        try_folder("--out", out)
        report.written(cells, out, command, display, before=[section(runs)])
    hand_over(config.json, out / report.NUMBERS)
    return 0


def roots(names: Sequence[str]) -> list[Place]:
    """The folders of runs among these, and right below those that are none.

    Raises:
        InputError: there is no run in one of them.
    """
    found: dict[str, Place] = {}  # by where they really lie
    for name in names:
        folder = storage.named(name)
        storage.require_reachable(folder)
        inside = [folder / one for one in storage.folders(folder)]
        own = [one for one in (folder, *inside) if storage.is_file(Workdir(one).config)]
        require(
            bool(own),
            f"{folder} holds no run of `pretrain`: neither it nor a folder in it has a"
            " config.yaml.",
        )
        found |= {str(one.resolve()): one for one in own}
    return list(found.values())


def cells_of(runs: Sequence[Pretrained]) -> list[Cell]:
    """Runs by size and length.

    Raises:
        InputError: none has finished; some differ in what is neither activation, seed, rate, size
            nor length; two are the same run; no rate of an activation was chosen; or none has the
            activation that differences are to.
    """
    check_alike(runs, OF_SIZE | OF_LENGTH)
    groups: dict[str, list[Pretrained]] = {}
    for run in runs:
        sizes = {name: run.setting[name] for name in OF_SIZE if name in run.setting}
        groups.setdefault(repr(sorted(sizes.items())), []).append(run)
    for own in groups.values():
        check_alike(own, frozenset())
    cells = [cell_of(at, own) for at, own in enumerate(groups.values(), 1)]
    require(
        any(REFERENCE in cell.arms for cell in cells),
        f"No finished run is of {REFERENCE}, which others are compared with (there are"
        f" {', '.join(sorted({run.arm.name for run in runs}))}).",
    )
    return sorted(cells, key=lambda cell: (cell.parameters, cell.tokens[-1]))


def check_alike(runs: Sequence[Pretrained], but: Collection[str]) -> None:
    """Raises `InputError` where runs differ in more than these fields, naming what."""
    first = runs[0]
    for other in runs[1:]:
        names = [
            name
            for name in sorted({*first.setting, *other.setting} - {*but})
            if first.setting.get(name) != other.setting.get(name)
        ]
        told = [f"{n} ({first.setting.get(n)!r}, {other.setting.get(n)!r})" for n in names]
        require(
            not names,
            f"{first.root} and {other.root} differ in {', '.join(told)}. Runs to compare differ in"
            " activation, seed, learning rate, size and length alone; name those that do.",
        )


def cell_of(number: int, runs: Sequence[Pretrained]) -> Cell:
    """Runs of one size and length, under a name that no other number has."""
    first, done = runs[0], [run for run in runs if run.finished]
    seen: dict[RunKey, Pretrained] = {}
    arms: dict[str, Arm] = {}
    for run in done:
        key = run.run.key
        if key in seen:
            raise InputError(
                f"{seen[key].root} and {run.root} are one run: {run.arm.name}, seed {key.seed},"
                f" learning rate {key.rate:g}, {key.lengths[0]:,} steps."
            )
        seen[key], arms[run.arm.folder] = run, run.arm
    plain: dict[str, Any] = {"activation": REFERENCE, "activation_options": ActivationOptions()}
    base, steps = replace(first.config.model, **plain), first.config.run.steps
    own = {
        name: [run.run for run in done if run.arm.folder == name]
        for name in sorted(arms, key=lambda name: (name != REFERENCE, name))
    }
    for name, found in own.items():
        check_rate(name, [run.key for run in found])
    read = {name: arm_runs(arms[name], base, found, (steps,)) for name, found in own.items()}
    waiting = tuple(name for name, arm in read.items() if not arm.runs)
    tokens = first.record.get("data", {}).get("train", {}).get("tokens")
    return Cell(
        name=f"{number}: {first.config.preset}, {steps:,} steps",
        root=first.root.parent,
        model=first.config.preset,
        base=base,
        data=first.config.data,
        lengths=(steps,),
        changes={},
        arms={name: arm for name, arm in read.items() if arm.runs},
        waiting=waiting,
        left_out=tuple(unfinished(run) for run in runs if not run.finished),
        train_tokens=tokens,
    )


def check_rate(name: str, keys: Sequence[RunKey]) -> None:
    """Raises `InputError` where results have several rates, and no seeds apart chose one."""
    results = sorted({key.rate for key in keys if key.seed < FIRST_SEED})
    searched: dict[float, dict[int, float]] = {}
    for key in keys:
        if key.seed >= FIRST_SEED:
            searched.setdefault(key.rate, {})[key.seed] = 0.0
    require(
        not searched or bool(shared_seeds(searched)),
        f"{name}: the runs with seeds from {FIRST_SEED} on, which choose its learning rate, have no"
        f" seed that all rates ({', '.join(f'{rate:g}' for rate in sorted(searched))}) have run.",
    )
    require(
        len(results) < 2 or set(results) <= set(searched),
        f"{name} has runs at the learning rates {', '.join(f'{rate:g}' for rate in results)}, and"
        f" to take the better would be to choose by the results. Runs with seeds from {FIRST_SEED}"
        " on, at each of them, choose; or name the runs of one rate.",
    )


def unfinished(run: Pretrained) -> str:
    """A line on a run that is left out."""
    return (
        f"{run.root} is left out: it is at step {run.step:,}, and has no held-out loss of its last,"
        f" {run.config.run.steps:,}, yet; `python -m experiments.pretrain {run.root}` goes on with"
        " it."
    )


def section(runs: Sequence[Pretrained]) -> Section:
    """The runs as a table."""
    rows = []
    for run in runs:
        speeds = series(run.metrics, "tokens_per_second")[1]
        loss = "diverged" if run.diverged else "-" if run.loss is None else f"{run.loss:.4f}"
        skipped = sum(bool(line.get("skipped")) for line in run.metrics)
        where = (str(run.record.get(name, "not known")) for name in ("device", "jax"))
        rows.append(
            (
                run.root.name, run.config.preset, run.arm.folder, str(run.config.run.seed),
                f"{run.config.optim.peak_learning_rate:g}", f"{run.config.run.steps:,}",
                loss, str(skipped),
                f"{np.median(speeds):,.0f}" if speeds else "-", *where,
            )
        )  # fmt: skip
    return Section(
        "Runs",
        (
            "folder", "model", "activation", "seed", "rate", "steps", "held-out", "skipped",
            "tokens/s", "device", "jax",
        ),
        tuple(rows),
        (
            "Held-out loss, nats a token, at the last step, of averaged weights where a run has"
            " them. Skipped: updates left out, since loss"
            " or gradient was not finite. Tokens/s: median over logged steps.",
        ),
    )  # fmt: skip
