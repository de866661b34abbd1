"""One run of `pretrain` as a run of a study."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from experiments.compare.arms import Arm
from experiments.compare.runs import Run, RunKey
from experiments.run.config import PretrainConfig
from experiments.run.folder import KNOWN_AS, Workdir
from experiments.run.metrics import read_metrics, series
from experiments.run.resuming import fixed
from polycom_jax.storage import Place

SEED, RATE = "run.seed", "optim.peak_learning_rate"
OF_ARM = ("model.activation", "model.activation_options.")


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
        record = self.record
        own = {
            "run.steps": self.config.run.steps,
            "text": record.get(KNOWN_AS) or record.get("data_fingerprint"),
            "tokenizer": record.get("tokenizer_fingerprint"),
            "weights from": record.get("weights_from"),
        }
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
