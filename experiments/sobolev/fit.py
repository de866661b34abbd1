"""Many fits at once: one compiled loop advances every learning rate, target and seed of a network.

All runs take Adam (0.9, 0.999, 1e-8) on mean squared errors, of values alone or of values and
gradients, with a linear warm-up over the first
twentieth of the steps and a cosine decay to 0. Run r draws the batch of a step from (its seed, the
step) alone, so two activations with the same seed see the same batches.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from polycom_jax.params import Params

WARMUP = 0.05
"""Share of the steps."""

ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


class Trainable(Protocol):
    """A family of functions on [0,1]^d with parameters; hashable, as a static argument of jit."""

    @property
    def size(self) -> int:
        """Number of parameters that are trained."""
        ...

    def init(self, key: Key[Array, ""], target: Int[Array, ""]) -> Params:
        """Initial parameters of a run that fits the target of that index."""
        ...

    def apply(self, params: Params, x: Float[Array, "P d"]) -> Float[Array, " P"]:
        """Values at points."""
        ...


@flax.struct.dataclass
class Runs:
    """What is fitted, one entry a run.

    Attributes:
        rates: peak learning rates.
        targets: which row of `Data.values` each run fits.
        seeds: of parameters and batches.
    """

    rates: Float[Array, " R"]
    targets: Int[Array, " R"]
    seeds: Int[Array, " R"]

    @classmethod
    def of(cls, runs: Iterable[tuple[float, int, int]]) -> "Runs":
        """From (rate, target, seed) of each run; always of the same dtypes."""
        rates, targets, seeds = zip(*runs, strict=True)
        whole = (jnp.array(numbers, jnp.int32) for numbers in (targets, seeds))
        return cls(jnp.array(rates, jnp.float32), *whole)


@flax.struct.dataclass
class Data:
    """Points to draw batches from, and what each target is there.

    Attributes:
        points: in [0,1]^d.
        values: of the targets, one row each.
        slopes: their gradients, where networks are fitted to these, too.
    """

    points: Float[Array, "M d"]
    values: Float[Array, "T M"]
    slopes: Float[Array, "T M d"] | None = None


@flax.struct.dataclass
class State:
    """What resuming needs; every leaf has a leading axis of runs.

    Attributes:
        params: of the networks.
        opt_state: Adam's moments.
    """

    params: Params
    opt_state: Any


@dataclass(frozen=True)
class Fit:
    """How a network is fitted.

    Attributes:
        network: what is fitted.
        steps: in all.
        batch_size: points a step.
        points: the first of the data, from which they are drawn; None: all.
    """

    network: Trainable
    steps: int
    batch_size: int
    points: int | None = None

    def start(self, runs: Runs) -> State:
        """The state of all runs before the first step."""
        return _start(self, runs)

    def advance(self, state: State, runs: Runs, data: Data, begin: int, end: int) -> State:
        """The state behind step `end`, from that behind step `begin`; `state` is used up."""
        return _advance(self, state, runs, data, jnp.int32(begin), jnp.int32(end))

    def rate(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Learning rate of a step as a share of its peak."""
        return share_of_peak(step, self.steps)


def share_of_peak(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Learning rate of a step of so many, over its peak: a linear warm-up, then a cosine to 0."""
    warmup = max(1, math.ceil(WARMUP * steps))
    done = (step - warmup) / max(1, steps - warmup)
    return jnp.minimum((step + 1) / warmup, 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1))))


# LLVM's higher levels take seconds over what runs once.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _start(fit: Fit, runs: Runs) -> State:
    def one(seed: Array, target: Array) -> Params:
        return fit.network.init(jax.random.key(seed), target)

    params = jax.vmap(one)(runs.seeds, runs.targets)
    return State(params, jax.vmap(ADAM.init)(params))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(
    fit: Fit, state: State, runs: Runs, data: Data, begin: Int[Array, ""], end: Int[Array, ""]
) -> State:
    def one(state: State, rate: Array, target: Array, seed: Array, step: Array) -> State:
        key = jax.random.fold_in(batch_key(seed), step)
        count = fit.points or len(data.points)
        chosen = jax.random.randint(key, (fit.batch_size,), 0, count)
        x, y = data.points[chosen], data.values[target, chosen]
        slopes = None if data.slopes is None else data.slopes[target, chosen]
        gradient = jax.grad(partial(_loss, fit.network))(state.params, x, y, slopes)
        moves, opt_state = ADAM.update(gradient, state.opt_state)
        pace = rate * fit.rate(step)
        return State(jax.tree.map(lambda p, m: p - pace * m, state.params, moves), opt_state)

    every: Callable[..., State] = jax.vmap(one, in_axes=(0, 0, 0, 0, None))
    return jax.lax.fori_loop(
        begin, end, lambda i, s: every(s, runs.rates, runs.targets, runs.seeds, i), state
    )


def _loss(
    network: Trainable,
    params: Params,
    x: Float[Array, "B d"],
    y: Float[Array, " B"],
    slopes: Float[Array, "B d"] | None,
) -> Float[Array, ""]:
    """mean (f - y)^2, plus mean |f' - y'|^2 where slopes are given: the norm of H^1, squared."""
    if slopes is None:
        return jnp.mean((network.apply(params, x) - y) ** 2)
    f, pull = jax.vjp(partial(network.apply, params), x)
    (gradients,) = pull(jnp.ones_like(f))  # points do not see each other
    return jnp.mean((f - y) ** 2) + jnp.mean(jnp.sum((gradients - slopes) ** 2, axis=1))


def batch_key(seed: Int[Array, ""]) -> Key[Array, ""]:
    """The key of a run's batches; that of its parameters is `jax.random.key(seed)`."""
    return jax.random.fold_in(jax.random.key(seed), 1)
