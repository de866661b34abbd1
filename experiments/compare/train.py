"""Trains one run of one arm. All seeds and learning rates of an arm share its compiled programs.

Rates come in from outside, so that neither a rate nor a schedule compiles anything anew.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.compare.runs import Run, RunKey
from experiments.compare.schedule import decay_start, rate_share
from experiments.run.report import activation_parameters
from polycom_jax import params as pm
from polycom_jax.data import TokenStore, train_batches
from polycom_jax.data.windows import gather
from polycom_jax.models import ModelConfig
from polycom_jax.training import OptimConfig, make_optimizer, model_specs
from polycom_jax.training.loss import Batch, batch_nats

State = tuple[Any, Any]
"""Parameters, and the state of the optimiser."""

POINTS = 60
"""Points of a run's curves."""


def make_init(cfg: ModelConfig, optim: OptimConfig) -> Callable[[Array], State]:
    """Builds `init(key) -> state`."""
    specs = model_specs(cfg)
    optimizer = _unit_optimizer(optim, specs)

    def init(key: Array) -> State:
        params = pm.init(specs, key)
        return params, optimizer.init(params)

    return init


def make_step(
    cfg: ModelConfig, optim: OptimConfig
) -> Callable[[State, Batch, Float[Array, ""]], tuple[State, dict[str, Array]]]:
    """Builds `step(state, batch, rate) -> (state, {"loss", "grad_norm"})`.

    It is `training.make_train_step` on one device with the learning rate as an argument: AdamW's
    update, decay included, is proportional to it.
    """
    optimizer = _unit_optimizer(optim, model_specs(cfg))

    def objective(params: Any, batch: Batch) -> tuple[Array, Array]:
        nats, aux = batch_nats(cfg, params, batch)
        loss = nats / jnp.maximum(jnp.sum(batch["mask"], dtype=jnp.float32), 1.0)
        return loss + aux.get("auxiliary_loss", 0.0), loss

    def step(state: State, batch: Batch, rate: Float[Array, ""]) -> tuple[State, dict[str, Array]]:
        params, opt_state = state
        grads, loss = jax.grad(objective, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates))
        return (params, opt_state), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return step


def _unit_optimizer(optim: OptimConfig, specs: Any) -> optax.GradientTransformation:
    unit = replace(
        optim,
        peak_learning_rate=1.0,
        final_learning_rate_fraction=1.0,
        warmup_steps=0,
        decay_steps=None,
        accumulation_steps=1,
    )
    return make_optimizer(unit, specs, steps=1)


@dataclass(frozen=True, eq=False)
class Programs:
    """An arm's compiled programs.

    Attributes:
        cfg: the model.
        init: key -> state.
        step: (state, batch, rate) -> (state, metrics); the state is donated.
        nats: (params, batch) -> (sum of -log p, targets).
        memory: bytes that a step needs beside the batch: state, gradients, activations.
    """

    cfg: ModelConfig
    init: Callable[[Array], State]
    step: Callable[..., tuple[State, dict[str, Array]]]
    nats: Callable[..., tuple[Array, Array]]
    memory: int


def compile_programs(cfg: ModelConfig, optim: OptimConfig, batch: Batch) -> Programs:
    """Compiles an arm for batches of this shape."""
    make = make_init(cfg, optim)
    state = jax.eval_shape(make, jax.random.key(0))
    # As in `training.make_state`: drawing random bits is not worth optimising.
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    step = jax.jit(make_step(cfg, optim), donate_argnums=0)
    compiled = step.lower(state, batch, jnp.float32(0)).compile()

    def nats(params: Any, batch: Batch) -> tuple[Array, Array]:
        return batch_nats(cfg, params, batch)[0], jnp.sum(batch["mask"], dtype=jnp.float32)

    needs: Any = compiled.memory_analysis()
    memory = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    return Programs(
        cfg=cfg,
        init=jax.jit(make, compiler_options=quick),
        step=compiled,
        nats=jax.jit(nats).lower(state[0], batch).compile(),
        memory=int(memory),
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
) -> Run:
    """Trains the trunk, and from it a decayed branch for each length."""
    clock = time.perf_counter()
    open_batches = partial(
        train_batches, store, batch_size=batch_size, seq_len=programs.cfg.context_length,
        seed=key.seed,
    )  # fmt: skip
    state, trunk = (
        programs.init(jax.random.key(key.seed)),
        _Curves(max(1, max(key.lengths) // POINTS)),
    )
    scores, at, batches = [], 0, open_batches()
    branch = trunk
    for length in key.lengths:
        leave = decay_start(length)
        state = _advance(programs, state, batches, key, at, leave, None, trunk)
        branch, at = trunk.copy(), leave
        # The trunk's own batches go on where it stands; the branch reads the same ones.
        tail = _advance(
            programs, jax.tree.map(jnp.copy, state), open_batches(start_step=at), key, at, length,
            length, branch,
        )  # fmt: skip
        scores.append(heldout_loss(programs, tail[0], heldout))
        if branch.diverged or not np.isfinite(scores[-1]):
            branch.diverged = True
            break
    return branch.run(key, scores, time.perf_counter() - clock)


class _Curves:
    """Curves of a run while it goes on: windows of steps, each read off the device at its end."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.points: list[tuple[int, float, float, Mapping[str, Any]]] = []
        self.open: list[dict[str, Array]] = []
        self.diverged = False

    def copy(self) -> "_Curves":
        other = _Curves(self.every)
        other.points, other.open = list(self.points), list(self.open)
        other.diverged = self.diverged
        return other

    def add(self, step: int, metrics: dict[str, Array], cfg: ModelConfig, state: State) -> None:
        self.open.append(metrics)
        if step % self.every:
            return
        read = jax.device_get(self.open)
        loss, norm = (float(np.mean([m[name] for m in read])) for name in ("loss", "grad_norm"))
        self.open = []
        if not np.isfinite([loss, norm]).all():
            self.diverged = True
            return
        layers = activation_parameters(cfg, state[0])
        numbers = {n: [np.ravel(layer[n]).tolist() for layer in layers] for n in layers[0]}
        self.points.append((step, loss, norm, numbers))

    def run(self, key: RunKey, scores: Sequence[float], seconds: float) -> Run:
        steps, loss, norm, numbers = zip(*self.points, strict=True) if self.points else [()] * 4
        return Run(
            key, self.diverged, () if self.diverged else tuple(scores), steps, loss, norm, numbers,
            seconds,
        )  # fmt: skip


def _advance(
    programs: Programs,
    state: State,
    batches: Iterator[Any],
    key: RunKey,
    start: int,
    end: int,
    length: int | None,
    curves: _Curves,
) -> State:
    """Updates start + 1 ... end; stops early where the loss is no number any more."""
    for update in range(start + 1, end + 1):
        if curves.diverged:
            break
        rate = np.float32(key.rate * rate_share(update, key.lengths, length))
        state, metrics = programs.step(state, next(batches), rate)
        curves.add(update, metrics, programs.cfg, state)
    return state
