"""Training: one network of one seed at one rate; an epoch is one compiled program."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from experiments.vision.images import ImageSet, Part
from polycom_jax import params as pm
from polycom_jax._errors import require
from polycom_jax._fields import check_fields, check_range
from polycom_jax.params import Params, Specs
from polycom_jax.training.optimizer import OptimConfig, make_optimizer, make_schedule

WARM_UP = 0.05
"""Share of the updates over which the rate rises; then it falls by a cosine to zero."""
WEIGHT_DECAY = 0.05


class Network(Protocol):
    """What is trained."""

    @property
    def specs(self) -> Specs: ...  # noqa: D102

    def logits(self, params: Params, x: Float[Array, "B H W C"]) -> Float[Array, "B k"]: ...  # noqa: D102


@dataclass(frozen=True)
class RecipeConfig:
    """How networks are trained: AdamW, clipped gradients, decay of matrices alone.

    Attributes:
        epochs: passes over the images.
        batch_size: images of an update.
        shift: pixels, at most, by which an image is moved at random each time, zeros around it.
        flip: mirror half of the images, left to right.
    """

    epochs: int = 10
    batch_size: int = 64
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_range(self, "at least 1", "epochs", "batch_size")
        check_range(self, "at least 0", "shift")


class State(NamedTuple):
    """Of a network while it is trained."""

    params: Params
    moments: Any


class Scores(NamedTuple):
    """Of a network on a part of the data."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


@dataclass(frozen=True)
class Run:
    """What came of one network. Losses are nats an image, accuracies shares of images.

    Attributes:
        seed: of initial values and of the order of images: the same for all activations.
        rate: peak learning rate.
        train_loss: mean over each epoch, while it trained.
        validation_loss: after each epoch.
        validation_accuracy: after each epoch.
        test_loss: at the end; NaN where the run failed.
        test_accuracy: at the end; NaN where the run failed.
        commit: of the code that trained it; None: not known.
    """

    seed: int
    rate: float
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    test_loss: float
    test_accuracy: float
    commit: str | None = None

    @property
    def failed(self) -> bool:
        """Whether a loss was no finite number."""
        return not math.isfinite(self.test_loss)

    @property
    def score(self) -> float:
        """What rates are chosen by: the last loss on the validation part, infinite if failed."""
        return math.inf if self.failed else self.validation_loss[-1]


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains one network on one data set; programs are compiled once for all seeds and rates.

    Attributes:
        network: which.
        images: data.
        recipe: how.
    """

    network: Network
    images: ImageSet
    recipe: RecipeConfig

    def __post_init__(self) -> None:
        have = len(self.images.train.labels)
        require(
            self.recipe.batch_size <= have,
            f"batch_size={self.recipe.batch_size} is more than the {have} images to train on.",
        )

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return sum(spec.size for spec in jax.tree.leaves(self.network.specs, is_leaf=pm.is_spec))

    def run(self, seed: int, rate: float, tell: Callable[[float], None]) -> Run:
        """Trains, and measures. `tell` takes the share that is done."""
        key, state = jax.random.key(seed), self._start(jax.random.key(seed))
        train, held = [], []
        for epoch in range(self.recipe.epochs):
            state, loss = self._epoch(state, self._train, key, jnp.int32(epoch), jnp.float32(rate))
            held.append(self._measure(state.params, *self._validation))
            train.append(float(loss))
            if not math.isfinite(train[-1]):
                break
            tell((epoch + 1) / self.recipe.epochs)
        last = self._measure(state.params, *self._test)
        good = all(map(math.isfinite, (*train, *(each.loss for each in held), last.loss)))
        return Run(
            seed,
            rate,
            tuple(train),
            tuple(float(each.loss) for each in held),
            tuple(float(each.accuracy) for each in held),
            float(last.loss) if good else math.nan,
            float(last.accuracy) if good else math.nan,
        )

    @cached_property
    def _train(self) -> Part:
        return jax.device_put(self.images.train)

    @cached_property
    def _validation(self) -> Any:
        return self._batches(self.images.validation)

    @cached_property
    def _test(self) -> Any:
        return self._batches(self.images.test)

    def _batches(self, part: Part) -> tuple[Array, Array, Array]:
        """Images, labels and weights in whole batches; what fills up the last weighs nothing."""
        size, count = self.recipe.batch_size, len(part.labels)
        rows = np.resize(np.arange(count), (-(-count // size), size))
        weights = (np.arange(rows.size) < count).astype(np.float32).reshape(rows.shape)
        return jax.device_put((part.images[rows], part.labels[rows], weights))

    @cached_property
    def _steps(self) -> int:
        return len(self.images.train.labels) // self.recipe.batch_size

    @cached_property
    def _optimizer(self) -> optax.GradientTransformationExtraArgs:
        return make_optimizer(OptimConfig(weight_decay=WEIGHT_DECAY), self.network.specs, None)

    @cached_property
    def _shape(self) -> optax.Schedule:
        """The rate at each update, in units of its peak."""
        steps = self._steps * self.recipe.epochs
        warm_up = min(round(WARM_UP * steps), steps - 1)
        optim = OptimConfig(1.0, final_learning_rate_fraction=0.0, warmup_steps=warm_up)
        return make_schedule(optim, steps)

    @cached_property
    def _start(self) -> Callable[[Key[Array, ""]], State]:
        def start(key: Key[Array, ""]) -> State:
            params = pm.init(self.network.specs, key)
            return State(params, self._optimizer.init(params))

        return jax.jit(start)

    @cached_property
    def _epoch(self) -> Callable[..., tuple[State, Float[Array, ""]]]:
        return jax.jit(self._one_epoch, donate_argnums=0)

    def _one_epoch(
        self,
        state: State,
        part: Part,
        key: Key[Array, ""],
        epoch: Int[Array, ""],
        rate: Float[Array, ""],
    ) -> tuple[State, Float[Array, ""]]:
        """All images once, in an order of the seed and epoch; those that fill no batch wait."""
        size, key = self.recipe.batch_size, jax.random.fold_in(pm.name_key(key, "order"), epoch)
        order = jax.random.permutation(key, len(part.labels))[: self._steps * size]

        def update(state: State, batch: tuple[Array, Array]) -> tuple[State, Array]:
            step, rows = batch
            own = jax.random.fold_in(key, step)
            images = changed(part.images[rows], own, self.recipe.shift, flip=self.recipe.flip)
            loss, gradient = jax.value_and_grad(self._loss)(state.params, images, part.labels[rows])
            factor = self._shape(epoch * self._steps + step)
            updates, moments = self._optimizer.update(
                gradient, state.moments, state.params, learning_rate=rate * factor
            )
            params = optax.apply_updates(state.params, updates)
            return State(params, moments), loss

        steps = jnp.arange(self._steps, dtype=jnp.int32)
        state, losses = jax.lax.scan(update, state, (steps, order.reshape(self._steps, size)))
        return state, jnp.mean(losses)

    def _loss(self, params: Params, images: Array, labels: Array) -> Float[Array, ""]:
        return jnp.mean(self._each(params, images, labels)[0])

    def _each(self, params: Params, images: Array, labels: Array) -> tuple[Array, Array]:
        """Of each image, -log of its class's probability, and whether that is the highest."""
        mean, deviation = (jnp.reshape(each, (1, 1, 1, -1)) for each in self.images.statistics())
        logits = self.network.logits(params, (images.astype(jnp.float32) - mean) / deviation)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, jnp.argmax(logits, axis=-1) == labels

    @cached_property
    def _measure(self) -> Callable[..., Scores]:
        def one(params: Params, images: Array, labels: Array, weights: Array) -> Array:
            return jnp.stack([jnp.sum(weights * x) for x in self._each(params, images, labels)])

        def measure(params: Params, images: Array, labels: Array, weights: Array) -> Scores:
            sums = jax.lax.map(lambda batch: one(params, *batch), (images, labels, weights))
            loss, right = jnp.sum(sums, axis=0) / jnp.sum(weights)
            return Scores(loss, right)

        return jax.jit(measure)


def changed(
    images: UInt8[Array, "B H W C"], key: Key[Array, ""], shift: int, *, flip: bool
) -> UInt8[Array, "B H W C"]:
    """Each image moved by up to `shift` pixels in both directions, and half of them mirrored."""
    moves, sides = jax.random.split(key)
    if shift:
        around = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        starts = jax.random.randint(moves, (len(images), 2), 0, 2 * shift + 1)
        shape = images.shape[1:]

        def window(image: Array, start: Array) -> Array:
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), shape)

        images = jax.vmap(window)(jnp.pad(images, around), starts)
    if flip:
        mirrored = jax.random.bernoulli(sides, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
