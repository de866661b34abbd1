"""Trains one run of one arm. All seeds and learning rates of an arm share its compiled programs.

The step is the one that pretraining takes, guard against numbers that are not finite included, but
for its learning rate, which comes in from outside: so neither a rate nor a schedule compiles
anything anew.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.compare.branching import decay_start, rate_share
from experiments.compare.runs import Run, RunKey
from experiments.run import device_memory
from experiments.run.kept_state import KeptState
from experiments.run.report import activation_parameters
from polycom_jax import models
from polycom_jax._errors import require
from polycom_jax.data import TokenStore, train_batches
from polycom_jax.data.windows import gather
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params
from polycom_jax.sharding import make_mesh
from polycom_jax.training import (
    OptimConfig,
    TrainState,
    abstract_state,
    make_init,
    make_model_step,
)
from polycom_jax.training.loss import Batch, batch_nats
from polycom_jax.training.weight_average import average_of

POINTS = 60
"""Points of a run's curves."""

GIB = 2**30

METRICS = ("loss", "grad_norm")
"""The metrics of a step that the curves are of."""


@dataclass(frozen=True, eq=False)
class Programs:
    """An arm's compiled programs.

    Attributes:
        cfg: the model.
        init: key -> state.
        step: (state, batch, rate) -> (state, metrics), the one that all programs train with on one
            device; the state is donated.
        nats: (params, batch) -> (sum of -log p, targets).
        memory: bytes that a step needs besides the batch: state, gradients, activations.
    """

    cfg: ModelConfig
    init: Callable[[Array], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, Array]]]
    nats: Callable[..., tuple[Array, Array]]
    memory: int


def compile_programs(cfg: ModelConfig, optim: OptimConfig, batch: Batch) -> Programs:
    """Compiles an arm for batches of this shape, which may be abstract.

    Raises:
        InputError: its runs need more memory than JAX may take of the device.
    """
    optim = replace(optim, accumulation_steps=1)
    mesh = make_mesh(devices=jax.devices()[:1])
    state = abstract_state(cfg, optim, mesh)
    step = make_model_step(cfg, optim, None, mesh)
    compiled = step.lower(state, batch, jnp.float32(0)).compile()

    def nats(params: Any, batch: Batch) -> tuple[Array, Array]:
        return batch_nats(cfg, params, batch)[0], jnp.sum(batch["mask"], dtype=jnp.float32)

    needs: Any = compiled.memory_analysis()
    memory = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    check_memory(cfg, int(memory) + held)
    return Programs(
        cfg=cfg,
        init=make_init(cfg, optim, mesh),
        step=compiled,
        nats=jax.jit(nats).lower(state.params, batch).compile(),
        memory=int(memory),
    )


def check_memory(cfg: ModelConfig, needed: int) -> None:
    """Refuses a run that would be out of memory where its first branch leaves the trunk, hours on.

    Args:
        cfg: the model.
        needed: bytes of a step, and of the state once more: a trunk waits while its branch trains.

    Raises:
        InputError: naming what there is, and what helps.
    """
    limit = device_memory.bytes_limit()
    require(
        not limit or needed <= limit,
        f"A run of {cfg.activation_name} with {models.count_params(cfg):,} parameters needs"
        f" {needed / GIB:.1f} GiB, and JAX may take {limit / GIB:.1f} GiB of this device. Of a GPU"
        " it takes 75% by itself: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 in the environment, or"
        " give a smaller --batch-size or model, or a study --recipe model.remat=full"
        " model.loss_chunk=4096.",
    )


def heldout_batches(
    store: TokenStore, *, batch_size: int, seq_len: int, tokens: int | None
) -> list[Batch]:
    """Windows spread evenly over the held-out text, on the device; the same for all runs."""
    every = -(-store.num_targets // seq_len)
    count = every if tokens is None else min(every, -(-tokens // seq_len))
    windows = np.linspace(0, every, count, endpoint=False).astype(np.int64)
    # The last batch is filled up with windows behind the text, which are masked.
    fill = -count % batch_size
    windows = np.concatenate([windows, np.full(fill, every, np.int64)])
    rows = windows.reshape(-1, batch_size)
    return [jax.device_put(gather(store, row, seq_len)) for row in rows]


def heldout_loss(programs: Programs, params: Any, batches: Sequence[Batch]) -> float:
    """Nats a token, summed in float64 on the host."""
    sums = jax.device_get([programs.nats(params, batch) for batch in batches])
    nats, targets = np.asarray(sums, np.float64).sum(axis=0)
    return float(nats / targets)


def train(
    programs: Programs,
    key: RunKey,
    store: TokenStore,
    heldout: Sequence[Batch],
    *,
    batch_size: int,
    kept: KeptState | None = None,
) -> Run:
    """Trains the trunk, and from it a decayed branch for each length.

    With `kept` a run that was stopped goes on, digit by digit: along its trunk and its longest
    branch; what was done of a shorter branch is done again.
    """
    clock = time.perf_counter()
    open_batches = partial(
        train_batches, store, batch_size=batch_size, seq_len=programs.cfg.context_length,
        seed=key.seed,
    )  # fmt: skip
    state, record = begin(programs, key, kept)
    trunk = Curves(max(1, max(key.lengths) // POINTS), record.get("curves"))
    at, scores = (int(state.step), list(record["heldout"])) if record else (0, [])
    initial = record["initial"] if record else heldout_loss(programs, state.params, heldout)

    def seconds() -> float:
        saving = kept.seconds if kept else 0.0
        return record.get("seconds", 0.0) + time.perf_counter() - clock - saving

    def look(state: TrainState, curves: Curves) -> None:
        if kept:
            numbers = {"initial": initial, "heldout": scores}
            kept.look(state, lambda: {**numbers, "seconds": seconds(), "curves": curves.record()})

    batches = open_batches(start_step=at)
    branch = trunk
    for length in key.lengths[len(scores) :]:
        leave = decay_start(length)
        state = advance(programs, state, batches, key, at, leave, None, trunk, look)
        branch, at = trunk.copy(), max(at, leave)
        # The trunk's own batches go on where it stands; the branch reads the same ones.
        # Of a shorter branch nothing is kept but the trunk where the branch leaves it.
        tail = advance(
            programs, jax.tree.map(jnp.copy, state), open_batches(start_step=at), key, at, length,
            length, branch,
            look if length == key.lengths[-1] else lambda *_, left=state: look(left, trunk),
        )  # fmt: skip
        scores.append(heldout_loss(programs, evaluated(tail), heldout))
        # The step leaves out an update that is not finite; a run of a study that had one is over.
        if branch.diverged or int(tail.watch.skipped) or not np.isfinite(scores[-1]):
            branch.diverged = True
            break
    return replace(branch.run(key, scores, seconds()), initial=initial)


def begin(
    programs: Programs, key: RunKey, kept: KeptState | None
) -> tuple[TrainState, Mapping[str, Any]]:
    """The state that a run goes on from, and what is known of its part before; nothing at first."""

    def init() -> TrainState:
        return programs.init(jax.random.key(key.seed))

    return kept.restore(init) if kept else (init(), {})


def evaluated(state: TrainState) -> Params:
    """The parameters that held-out text is scored with: their average, where the recipe has one."""
    average = average_of(state.opt_state)
    return state.params if average is None else average


class Curves:
    """Curves of a run while it goes on: windows of steps, each read off the device at its end."""

    def __init__(self, every: int, record: Mapping[str, Any] | None = None) -> None:
        """`record`: of curves that these go on with."""
        begun = record or {"points": (), "open": ()}
        self.every = every
        self.points: list[tuple[int, float, float, Mapping[str, Any]]] = [
            (step, loss, norm, numbers) for step, loss, norm, numbers in begun["points"]
        ]
        self.open: list[Mapping[str, Any]] = [
            {name: np.float32(value) for name, value in metrics.items()}
            for metrics in begun["open"]
        ]
        self.diverged = False

    def copy(self) -> "Curves":
        """One that goes on by itself."""
        other = Curves(self.every)
        other.points, other.open = list(self.points), list(self.open)
        other.diverged = self.diverged
        return other

    def record(self) -> Mapping[str, Any]:
        """All of it in numbers, for another process to go on with."""
        metrics = [{name: each[name] for name in METRICS} for each in self.open]
        read = [{k: float(v) for k, v in each.items()} for each in jax.device_get(metrics)]
        return {"points": self.points, "open": read}

    def add(
        self, step: int, metrics: dict[str, Array], cfg: ModelConfig, state: TrainState
    ) -> None:
        """Takes in an update; its numbers are read at the end of the window."""
        self.open.append(metrics)
        if step % self.every:
            return
        read = jax.device_get(self.open)
        loss, norm = (float(np.mean([m[name] for m in read])) for name in METRICS)
        self.open = []
        if not np.isfinite([loss, norm]).all():
            self.diverged = True
            return
        layers = activation_parameters(cfg, state.params)
        numbers = {n: [np.ravel(layer[n]).tolist() for layer in layers] for n in layers[0]}
        self.points.append((step, loss, norm, numbers))

    def run(self, key: RunKey, scores: Sequence[float], seconds: float) -> Run:
        """The finished run."""
        steps, loss, norm, numbers = zip(*self.points, strict=True) if self.points else [()] * 4
        return Run(
            key, self.diverged, () if self.diverged else tuple(scores), steps, loss, norm, numbers,
            seconds,
        )  # fmt: skip


def advance(
    programs: Programs,
    state: TrainState,
    batches: Iterator[Any],
    key: RunKey,
    start: int,
    end: int,
    length: int | None,
    curves: Curves,
    look: Callable[[TrainState, Curves], None] | None = None,
) -> TrainState:
    """Updates start + 1 ... end; stops early where the loss is no number any more.

    `look` sees the state and the curves after each.
    """
    for update in range(start + 1, end + 1):
        if curves.diverged:
            break
        rate = np.float32(key.rate * rate_share(update, key.lengths, length))
        state, metrics = programs.step(state, next(batches), rate)
        curves.add(update, metrics, programs.cfg, state)
        if look is not None and not curves.diverged:
            look(state, curves)
    return state
