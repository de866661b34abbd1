"""Whether a run learns to copy, and when: an induction head that forms on the way.

    python -m experiments.results.compare.heads.late [ARM/SEED ...]

trains runs once more (default: none), in a folder where the texts of their study lie, adds them to
late.json, and prints the tables of README.md. The test is of the runs under Muon.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.compare.branching import decay_start
from experiments.compare.runs import Run
from experiments.compare.train import Curves, Programs, advance, heldout_loss
from experiments.results.compare.heads.again import (
    HERE,
    WINDOWS,
    Setting,
    keep,
    kept,
    repeats,
    results,
    setting_of,
    table,
    within,
)
from polycom_jax import analysis, models
from polycom_jax.data import train_batches
from polycom_jax.training import TrainState
from polycom_jax.training.loss import Batch, cross_entropy

ARMS = ("swiglu_muon", "poly_norm_muon")
STUDIES = {"optimizers-0.3m": ARMS, "size-0.3m": ("swiglu", "poly_norm")}
"""Folder -> arms of it, whose names no other has."""
SEEN = (("swiglu_muon", 0), ("swiglu_muon", 2))
"""Runs that the expectation comes from; they take no part in its test."""
LETTERS = (97, 123)
PERIOD = 50
LOOKS = 10
"""Looks at a run, evenly spread."""


@dataclass(frozen=True)
class Look:
    """A run on the way.

    Attributes:
        arm: of the run.
        seed: of the run.
        update: how far it is.
        repeats: whether its training loss so far is that of the first time, digit by digit.
        heldout: nats a byte.
        copying: most attention that a head gives, in random letters that come twice, to what came
            after the same letter before.
        once: nats a letter where they come for the first time.
        twice: for the second.
    """

    arm: str
    seed: int
    update: int
    repeats: bool
    heldout: float
    copying: float
    once: float
    twice: float


def looks(setting: Setting, run: Run) -> Iterator[Look]:
    """Trains a run to its end, and looks."""
    key, programs = run.key, setting.programs(run.key.arm)
    length, curves = key.lengths[-1], Curves(run.steps[0])
    batches = train_batches(setting.store, **setting.shape, seed=key.seed)
    state, at = programs.init(jax.random.key(key.seed)), 0
    leave = decay_start(length)
    for update in sorted({leave, *(length * i // LOOKS for i in range(1, LOOKS + 1))}):
        decays = length if update > leave else None
        state = advance(programs, state, batches, key, at, update, decays, curves)
        at = update
        yield look(setting, programs, state, run, update, curves)


def look(
    setting: Setting, programs: Programs, state: TrainState, run: Run, update: int, curves: Curves
) -> Look:
    """Random letters, the same for all."""
    cfg, params = programs.cfg, state.params
    half = np.random.default_rng(0).integers(*LETTERS, (WINDOWS, PERIOD))
    tokens = jnp.asarray(np.tile(half, 2), jnp.int32)
    place = jnp.broadcast_to(jnp.arange(2 * PERIOD, dtype=jnp.int32), tokens.shape)
    batch: Batch = {
        "tokens": tokens, "positions": place, "segment_ids": jnp.ones_like(tokens),
    }  # fmt: skip
    shares = [
        analysis.share_before(layer.queries, layer.keys, PERIOD - 1, mask=place >= PERIOD).max()
        for layer in analysis.walk(cfg, params, batch)
    ]
    nats = cross_entropy(models.forward(cfg, params, tokens[:, :-1]), tokens[:, 1:])
    nats = np.asarray(nats, np.float64).reshape(WINDOWS, -1).mean(axis=0)
    loss = heldout_loss(programs, params, setting.heldout)
    # The first letters of either copy have too little before them to tell anything.
    once, twice = nats[PERIOD // 10 : PERIOD - 1].mean(), nats[PERIOD + PERIOD // 10 :].mean()
    same = repeats(run, curves)
    numbers: Any = (loss, max(shares), once, twice)
    return Look(run.key.arm, run.key.seed, update, same, *map(float, numbers))


def main(asked: list[str]) -> None:
    """Trains what is asked for and not there, and prints all."""
    found = kept(HERE / "late.json", Look)
    todo = set(asked) - {f"{one.arm}/{one.seed}" for one in found}
    order = [arm for arms in STUDIES.values() for arm in arms]
    runs = [(study, run) for study, arms in STUDIES.items() for run in results(study, arms)]
    for study, run in runs:
        if f"{run.key.arm}/{run.key.seed}" in todo:
            found.extend(looks(setting_of(study), run))
            found.sort(key=lambda one: (order.index(one.arm), one.seed, one.update))
            keep(HERE / "late.json", found)
    head = ("arm", "seed", "update", "held-out", "copying", "once", "twice", "repeats")
    rows = [
        (one.arm, one.seed, one.update, f"{one.heldout:.4f}", f"{one.copying:.3f}",
         f"{one.once:.2f}", f"{one.twice:.2f}", one.repeats) for one in found
    ]  # fmt: skip
    table(head, rows)
    told([one for one in found if one.update == max(one.update for one in found)])


def told(ends: list[Look]) -> None:
    """The test: within one arm, does copying at the end go with the loss there?"""
    new = [one for one in ends if (one.arm, one.seed) not in SEEN]
    groups = [[(one.copying, one.heldout) for one in new if one.arm == arm] for arm in ARMS]
    groups = [own for own in groups if len(own) > 1]
    if not groups:
        return
    for own in groups:
        print(
            f"rank correlation over {len(own)} runs: {stats.spearmanr(*np.transpose(own))[0]:.2f}"
        )
    slope, explained, p = within(groups)
    print(f"slope {slope:.3f} nats a unit, share of variance {explained:.2f}, p {p:.2g}")


if __name__ == "__main__":
    main(sys.argv[1:])
