"""Training: all seeds of all tasks of one shape at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.geometry.network import Network, Readout
from experiments.geometry.tasks import Points, Task
from polycom_jax.params import Params

BATCHES = 64
"""Batches of noise that are drawn for a seed, and come again in turn: a finite training set."""
PROBES = 12
"""How often in training loss and hidden layers are looked at, at steps in geometric progression."""


@dataclass(frozen=True)
class Recipe:
    """How networks of a family are trained.

    Attributes:
        optimizer: a name of `OPTIMIZERS`.
        learning_rate: constant.
        steps: updates.
        copies: noisy copies of each point in a batch.
        readout: whether the weights behind the hidden layer are trained.
    """

    optimizer: str
    learning_rate: float
    steps: int
    copies: int
    readout: Readout


OPTIMIZERS: Mapping[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
}
RECIPES: Mapping[str, Recipe] = {
    "patterns": Recipe("sgd", 0.1, 1000, 4, "fixed"),
    "xor": Recipe("sgd", 0.1, 5000, 4, "fixed"),
    "kernel": Recipe("adam", 1e-3, 1000, 1, "trained"),
}
"""Of each family: what the first author's files have, but for steps and copies, which are ours."""


class State(NamedTuple):
    """Of one network while it is trained."""

    params: Params
    moments: Any


class Data(NamedTuple):
    """Of one network; leading axes are tasks and seeds."""

    inputs: Float[Array, "*B P D"]
    labels: Float[Array, "*B P k"]
    noise: Float[Array, "*B"]


@dataclass(frozen=True)
class Probe:
    """T tasks of S seeds, looked at in training.

    Attributes:
        step: how many updates came before.
        loss: the mean over points without noise and over labels, in nats.
        hidden: the hidden layer of points without noise.
    """

    step: int
    loss: Float[np.ndarray, "T S"]
    hidden: Float[np.ndarray, "T S P W"]


@dataclass(frozen=True, eq=False)
class Group:
    """Tasks of one shape, and networks of one activation for them.

    Attributes:
        network: of all of them.
        recipe: how they are trained.
        tasks: T of one family, with as many labels.
        seeds: S seeds: of points, of initial values, of noise.
    """

    network: Network
    recipe: Recipe
    tasks: Sequence[Task]
    seeds: Sequence[int]

    @cached_property
    def points(self) -> list[list[Points]]:
        """By task and seed."""
        return [[task.points(seed) for seed in self.seeds] for task in self.tasks]

    @cached_property
    def data(self) -> Data:
        """On the device."""
        noise = np.array([[task.noise] * len(self.seeds) for task in self.tasks])
        inputs = [[each.inputs for each in row] for row in self.points]
        labels = [[each.labels for each in row] for row in self.points]
        return Data(*(jnp.asarray(each, jnp.float32) for each in (inputs, labels, noise)))

    @cached_property
    def bank(self) -> Float[Array, "S B N D"]:
        """Standard-normal noise of each seed: the same for all tasks and activations."""
        rows = self.recipe.copies * self.data.inputs.shape[2]
        shape = (BATCHES, rows, self.network.dim)
        return jnp.stack([jax.random.normal(jax.random.key(seed), shape) for seed in self.seeds])

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Of each network by itself."""
        return OPTIMIZERS[self.recipe.optimizer](self.recipe.learning_rate)

    def steps(self) -> list[int]:
        """Where to look: at the start, in geometric progression, at the end.

        What happens between two looks is seen at the later one.
        """
        found = np.geomspace(min(10, self.recipe.steps), self.recipe.steps, PROBES)
        return sorted({0, *np.round(found).astype(int).tolist()})

    def train(self, tell: Callable[[float], None]) -> tuple[Params, list[Probe]]:
        """Parameters of all networks, and what was seen on the way.

        `tell` takes the share that is done.
        """
        keys = jnp.stack([jax.random.key(seed) for seed in self.seeds])
        state, probes, begin = self._start(keys), list[Probe](), 0
        for step in self.steps():
            state = self._advance(state, self.data, self.bank, jnp.int32(begin), jnp.int32(step))
            loss, hidden = jax.device_get(self._look(state.params, self.data))
            probes.append(Probe(step, loss, hidden))
            tell(step / self.recipe.steps)
            begin = step
        return state.params, probes

    @cached_property
    def _start(self) -> Callable[[Array], State]:
        def start(key: Array) -> State:
            params = self.network.init(key)
            return State(params, self.optimizer.init(params))

        return jax.jit(
            lambda keys: jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (len(self.tasks), *leaf.shape)),
                jax.vmap(start)(keys),
            )
        )

    @cached_property
    def _advance(self) -> Callable[..., State]:
        return _of_all(self._one, (0, 0, None, None, None), (0, 0, 0, None, None))

    @cached_property
    def _look(self) -> Callable[..., tuple[Array, Array]]:
        def look(params: Params, data: Data) -> tuple[Array, Array]:
            loss = self._loss(params, data.inputs, data.labels)
            return loss, self.network.hidden(params, data.inputs)

        return _of_all(look, (0, 0), (0, 0))

    def _loss(
        self, params: Params, x: Float[Array, "N D"], y: Float[Array, "N k"]
    ) -> Float[Array, ""]:
        """-log of the probability of labels, independent ones given the outputs."""
        return jnp.mean(jax.nn.softplus(-y * self.network.logits(params, x)))

    def _one(
        self,
        state: State,
        data: Data,
        bank: Float[Array, "B N D"],
        begin: Int[Array, ""],
        end: Int[Array, ""],
    ) -> State:
        """One network from step `begin` to step `end`."""
        x, y = (jnp.tile(each, (self.recipe.copies, 1)) for each in data[:2])
        gradient = jax.grad(self._loss)

        def update(step: Array, state: State) -> State:
            noisy = x + data.noise * bank[step % BATCHES]
            updates, moments = self.optimizer.update(
                gradient(state.params, noisy, y), state.moments, state.params
            )
            return State(optax.apply_updates(state.params, updates), moments)  # pyright: ignore

        return jax.lax.fori_loop(begin, end, update, state)


def _of_all(
    f: Callable[..., Any], tasks: tuple[int | None, ...], seeds: tuple[int | None, ...]
) -> Callable[..., Any]:
    """`f` of one network as a compiled one of all: axes over tasks, then over seeds."""
    return jax.jit(jax.vmap(jax.vmap(f, seeds), tasks))
