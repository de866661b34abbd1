"""Suite safety: what it costs that a run can be killed, and may meet a loss that is no number."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import jax

from experiments.benchmark import shapes
from experiments.benchmark.contest import hold
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell
from experiments.benchmark.steps import Ours
from polycom_jax.sharding import make_mesh
from polycom_jax.training import Checkpoints, make_state, step

ACTIVATION = "poly_norm"
STEP, UNGUARDED, SAVE = "a step", "a step without the guard", "a checkpoint"
EVERY = 50
"""Steps between two checkpoints that the share is counted for."""


def cases(options: Options) -> list[Case]:
    """One: a training step, the same without its guard, and a checkpoint of its state."""
    return [Case("safety", shapes.name(options), partial(_run, options))]


def _run(options: Options, tell: Tell) -> Result:
    activation = (options.activations or (ACTIVATION,))[0]
    cfg = shapes.model(options, activation)
    tell("making states")
    with contextlib.ExitStack() as stack:
        contestants = [
            _step(STEP, Ours(options, activation)),
            _step(UNGUARDED, _without_guard(options, activation)),
            stack.enter_context(_saving(options, activation)),
        ]
        return hold(
            "safety",
            shapes.describe(options, cfg),
            contestants,
            options,
            tell,
            dtype=cfg.dtype,
            references=(UNGUARDED, STEP),
            left_out={},
            numbers=_share,
            notes=(
                "the guard: an update is left out where loss or gradient is not finite; a"
                " checkpoint is waited for until it is on the disk, which a run does not do",
            ),
        )


def _step(name: str, ours: Ours) -> Contestant:
    return Contestant(name, ours, ours.wait)


def _without_guard(options: Options, activation: str) -> Ours:
    """A step that takes every update; it is traced in here."""
    ours = Ours(options, activation)
    with mock.patch.object(step, "keep_good", lambda good, new, old: new):
        ours.wait(ours())
    return ours


@contextlib.contextmanager
def _saving(options: Options, activation: str) -> Iterator[Contestant]:
    optim, mesh = shapes.optimizer(options), make_mesh(devices=jax.devices()[:1])
    state = make_state(shapes.model(options, activation), optim, jax.random.key(0), mesh)
    with (
        tempfile.TemporaryDirectory(prefix="polycom-benchmark-") as folder,
        Checkpoints(folder) as checkpoints,
    ):
        count = iter(range(1, 1 << 30))

        def save() -> None:
            checkpoints.save(next(count), state)
            checkpoints.wait()

        yield Contestant(SAVE, save, lambda outcome: outcome)


def _share(readings: Mapping[str, Sequence[float]]) -> Any:
    steps = EVERY * median(readings[STEP])

    def numbers(name: str, seconds: float) -> Mapping[str, float]:
        return {f"% of {EVERY} steps": 100 * seconds / steps} if name == SAVE else {}

    return numbers
