"""Seconds a step of every arm, in strict alternation: what slows the machine slows all arms."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np

from experiments.compare.train import Programs
from experiments.run.files import write_json
from polycom_jax import storage
from polycom_jax.storage import Place
from polycom_jax.training.loss import Batch

TIMES = "timing.json"
"""The file of a study's folder."""

ROUNDS = 41
LEAST_ROUNDS = 11
ENOUGH_S = 120.0
"""Rounds end early, but not before the least, once they have taken this long."""
STEPS = 4
"""Steps of an arm in a round; one more, before the clock starts, warms it up."""


@dataclass(frozen=True)
class Timing:
    """What steps take.

    Attributes:
        seconds: folder of the arm's runs -> seconds a step in each round.
        memory: the same -> bytes of its compiled step.
    """

    seconds: Mapping[str, Sequence[float]]
    memory: Mapping[str, int]


def measured(
    path: Place,
    programs: Mapping[str, Callable[[], Programs]],
    batch: Batch,
    tell: Callable[[str], None],
) -> Timing:
    """The timing that the file holds, if it has these arms; else it is measured, and written there.

    So a finished study is reported again without compiling anything.
    """
    there = stored(path)
    if there is not None and set(there.seconds) >= set(programs):
        return there
    made = {name: make() for name, make in programs.items()}
    seconds = step_seconds(made, batch, tell)
    found = Timing(seconds, {name: arm.memory for name, arm in made.items()})
    write_json(path, asdict(found), indent=None)
    return found


def stored(path: Place) -> Timing | None:
    """The timing that the file holds; None: there is no file."""
    return Timing(**json.loads(storage.read(path))) if storage.is_file(path) else None


def step_seconds(
    programs: Mapping[str, Programs], batch: Batch, tell: Callable[[str], None]
) -> Mapping[str, Sequence[float]]:
    """Arm -> seconds a step in each round, on one batch (a step's time does not depend on it)."""
    rate = np.float32(0.0)
    readings: dict[str, list[float]] = {name: [] for name in programs}
    begun = time.perf_counter()
    for turn in range(ROUNDS):
        if turn >= LEAST_ROUNDS and time.perf_counter() - begun > ENOUGH_S:
            break
        tell(f"time steps, round {turn + 1} of {ROUNDS}")
        for name, arm in programs.items():
            state = arm.init(jax.random.key(0))
            state, metrics = arm.step(state, batch, rate)
            jax.block_until_ready(metrics)
            clock = time.perf_counter()
            for _ in range(STEPS):
                state, metrics = arm.step(state, batch, rate)
            jax.block_until_ready((state, metrics))
            readings[name].append((time.perf_counter() - clock) / STEPS)
    return readings
