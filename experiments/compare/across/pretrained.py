"""Finished runs of `pretrain` as a study: `python -m experiments.compare pretrained --help`.

python -m experiments.compare pretrained runs/110m-swiglu-0 runs/110m-poly_norm-0 --out runs/110m
python -m experiments.compare pretrained gs://BUCKET/runs
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from experiments.compare.across import report
from experiments.compare.across.cells import Cell, arm_runs
from experiments.compare.arms import Arm
from experiments.compare.runs import Run, RunKey
from experiments.compare.studies import REFERENCE
from experiments.run.config import PretrainConfig
from experiments.run.files import STDOUT, hand_over, try_json
from experiments.run.folder import Workdir
from experiments.run.metrics import read_metrics, series
from experiments.run.rate_search import FIRST_SEED
from experiments.run.resuming import fixed
from experiments.terminal.flags import CommandLine
from experiments.terminal.paths import try_folder
from experiments.terminal.progress import Display
from experiments.terminal.tables import Section
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.storage import Place

SEED, RATE = "run.seed", "optim.peak_learning_rate"
OF_ARM = ("model.activation", "model.activation_options.")
OF_SIZE = frozenset(
    {"run.steps", "optim.warmup_steps", "optim.decay_steps", "data.batch_size"}
    | {f"model.{name}" for name in (
        "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "gated_width",
        "tie_embeddings",
    )}
)  # fmt: skip
"""What runs of different sizes and lengths may differ in."""


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


@dataclass(frozen=True)
class Pretrained:
    """A run of `pretrain`.

    Attributes:
        root: its folder.
        config: what it ran with.
        record: what is known of it besides.
        metrics: its lines.
    """

    root: Place
    config: PretrainConfig
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, root: Place) -> "Pretrained":
        """Reads a folder.

        Raises:
            InputError: it holds no run, or the file of its activation is another one now.
        """
        folder = Workdir(root)
        return cls(root, folder.read_config(), folder.record(), read_metrics(folder.metrics))

    @cached_property
    def arm(self) -> Arm:
        """Its activation, named by its options where these are not the defaults."""
        model = self.config.model
        options = replace(model.activation_options, implementation=None)
        plain = Arm.of(str(model.activation))
        changed = [
            f"{name}={value}"
            for name, value in vars(options).items()
            if value != getattr(plain.options, name)
        ]
        return replace(plain, name=" ".join([plain.name, *changed]), options=options)

    @cached_property
    def setting(self) -> dict[str, Any]:
        """Field -> value, of all that pairs have in common."""
        texts = ("data_fingerprint", "tokenizer_fingerprint")
        own = {"run.steps": self.config.run.steps, **{n: self.record.get(n) for n in texts}}
        kept = {
            name: value
            for name, value in fixed(self.config).items()
            if name not in (SEED, RATE) and not name.startswith(OF_ARM)
        }
        return {**kept, **own}

    @property
    def step(self) -> int:
        """The last one with a line."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def loss(self) -> float | None:
        """Held-out, at the last step, of the averaged weights where there are such."""
        name = "heldout_loss" if self.config.optim.ema_decay is None else "ema_heldout_loss"
        return self.metrics[-1].get(name) if self.step == self.config.run.steps else None

    @property
    def diverged(self) -> bool:
        """It gave up, see `run.give_up_after`, or ended in no number."""
        patience = self.config.run.give_up_after
        last = [bool(line.get("skipped")) for line in self.metrics[-patience:]]
        ended = self.step == self.config.run.steps and "heldout_loss" in self.metrics[-1]
        return last == [True] * patience or (ended and self.loss is None)

    @property
    def finished(self) -> bool:
        """Nothing more will come of it."""
        return self.loss is not None or self.diverged

    @property
    def run(self) -> Run:
        """What came out of a finished one."""
        config, loss = self.config, None if self.diverged else self.loss
        key = RunKey(
            self.arm.folder, config.optim.peak_learning_rate, config.run.seed, (config.run.steps,)
        )
        steps, losses = series(self.metrics, "loss")
        norms = dict(zip(*series(self.metrics, "grad_norm"), strict=True))
        return Run(
            key=key,
            diverged=self.diverged,
            heldout=() if loss is None else (loss,),
            steps=tuple(steps),
            loss=tuple(losses),
            grad_norm=tuple(norms.get(step, math.nan) for step in steps),
            coefficients=tuple({} for _ in steps),
            seconds=math.nan,
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
    found: dict[str, Place] = {}
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
        found |= {str(one): one for one in own}
    return list(found.values())


def cells_of(runs: Sequence[Pretrained]) -> list[Cell]:
    """Runs by size and length.

    Raises:
        InputError: none has finished; some differ in what is neither activation, seed, rate, size
            nor length; two are the same run; no rate of an activation was chosen; or none has the
            activation that differences are to.
    """
    check_alike(runs)
    groups: dict[str, list[Pretrained]] = {}
    for run in runs:
        sizes = {name: run.setting[name] for name in OF_SIZE if name in run.setting}
        groups.setdefault(repr(sorted(sizes.items())), []).append(run)
    cells = [cell_of(at, own) for at, own in enumerate(groups.values(), 1)]
    require(
        any(REFERENCE in cell.arms for cell in cells),
        f"No finished run is of {REFERENCE}, which others are compared with (there are"
        f" {', '.join(sorted({run.arm.name for run in runs}))}).",
    )
    return sorted(cells, key=lambda cell: (cell.parameters, cell.tokens[-1]))


def check_alike(runs: Sequence[Pretrained]) -> None:
    """Raises `InputError` where runs differ in more than `cells_of` takes, naming what."""
    first = runs[0]
    for other in runs[1:]:
        names = [
            name
            for name in sorted({*first.setting, *other.setting} - OF_SIZE)
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
    base, steps = replace(first.config.model, activation=REFERENCE), first.config.run.steps
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
    searched = {key.rate for key in keys if key.seed >= FIRST_SEED}
    require(
        len(results) < 2 or set(results) <= searched,
        f"{name} has runs at the learning rates {', '.join(f'{rate:g}' for rate in results)}, and"
        f" to take the better would be to choose by the results. Runs with seeds from {FIRST_SEED}"
        " on, at each of them, choose; or name the runs of one rate.",
    )


def unfinished(run: Pretrained) -> str:
    """A line on a run that is left out."""
    return (
        f"{run.root} is left out: it is at step {run.step:,} of {run.config.run.steps:,};"
        f" `python -m experiments.pretrain {run.root}` goes on with it."
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
                run.root.name, run.config.preset, run.arm.name, str(run.config.run.seed),
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
            "Held-out loss, nats a token, at the last step. Skipped: updates left out, since loss"
            " or gradient was not finite. Tokens/s: median over logged steps.",
        ),
    )  # fmt: skip
