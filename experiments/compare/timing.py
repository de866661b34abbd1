"""Seconds a step of every arm, in strict alternation: what slows the machine slows all arms."""

import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from experiments.compare.train import Programs
from polycom_jax.training.loss import Batch

ROUNDS = 7
STEPS = 5
"""Steps of an arm in a round; one more, before the clock starts, warms it up."""


def step_seconds(
    programs: Mapping[str, Programs], batch: Batch, tell: Callable[[str], None]
) -> Mapping[str, Sequence[float]]:
    """Arm -> seconds a step in each round, on one batch (a step's time does not depend on it)."""
    rate = np.float32(0.0)
    readings: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(ROUNDS):
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
