"""Training: one network to one target from one seed at one rate, on all its points at each step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from experiments.run.files import from_record
from experiments.sobolev.coordinates.networks import Network
from experiments.sobolev.coordinates.targets import Samples, Target, pixel_centres
from experiments.sobolev.fit import ADAM, share_of_peak
from polycom_jax.params import Params

CHECKS = 16
"""Times that errors are measured in a run, evenly spread; a run ends there where it diverged."""

Loss = Literal["l2", "h1"]


class State(NamedTuple):
    """Of a network while it is trained."""

    params: Params
    moments: Any


class Points(NamedTuple):
    """`Samples` on the device, and what errors are divided by."""

    points: Float[Array, "P 2"]
    values: Float[Array, " P"]
    slopes: Float[Array, "P 2"]
    variance: Float[Array, ""]
    square: Float[Array, ""]

    @classmethod
    def of(cls, samples: Samples) -> "Points":
        """In float32."""
        square = np.mean(np.sum(samples.slopes**2, axis=1))
        numbers = (samples.points, samples.values, samples.slopes, samples.values.var(), square)
        return cls(*(jnp.asarray(each, jnp.float32) for each in numbers))


class Errors(NamedTuple):
    """Of a network at points: root mean squares, in the units of the target.

    `slopes` is over the root mean square of the target's gradients; `length` is the mean of
    | |f'| - 1 |.
    """

    l2: Float[Array, ""]
    sup: Float[Array, ""]
    slopes: Float[Array, ""]
    length: Float[Array, ""]


@dataclass(frozen=True)
class Run:
    """What came of one network.

    Attributes:
        target: its name.
        seed: of initial values: equal for all arms.
        rate: peak learning rate.
        steps: behind which errors were measured.
        train: root mean square error at the points trained on, behind each.
        held: at those held out.
        sup: largest error at those held out, at the end.
        slopes: error of gradients at those held out, over their root mean square.
        length: mean of | |f'| - 1 | there.
        deviation: of the target at the points trained on.
        score: what rates are chosen by; see `Trainer.score`.
        commit: of the code that trained it; None: not known.
    """

    target: str
    seed: int
    rate: float
    steps: tuple[int, ...]
    train: tuple[float, ...]
    held: tuple[float, ...]
    sup: float
    slopes: float
    length: float
    deviation: float
    score: float
    commit: str | None = None

    @property
    def failed(self) -> bool:
        """Whether it diverged, or ended no nearer to the points than their mean is."""
        ends = (self.train[-1], self.held[-1], self.sup, self.slopes)
        return not all(map(math.isfinite, ends)) or self.train[-1] >= self.deviation

    @classmethod
    def read(cls, record: dict[str, Any]) -> "Run":
        """From JSON, where a score that was infinite is no number."""
        run = from_record(cls, record)
        return run if math.isfinite(run.score) else replace(run, score=math.inf)


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains one network; its programs are compiled once for all targets, seeds and rates.

    Attributes:
        network: which.
        steps: of Adam, with a warm-up and a cosine decay to 0.
        loss: l2, the mean squared error of values; h1, that over their variance, plus that of
            gradients over the mean square of them.
    """

    network: Network
    steps: int
    loss: Loss

    def run(
        self, target: Target, seed: int, rate: float, tell: Callable[[float], None]
    ) -> tuple[Run, Params]:
        """Trains, and measures. `tell` takes the share that is done."""
        train, held = Points.of(target.train), Points.of(target.held)
        state = self._start(jax.random.key(seed))
        steps, errors = list[int](), list[tuple[float, float]]()
        begin, length = 0, math.ceil(self.steps / CHECKS)
        while begin < self.steps:
            end = min(self.steps, begin + length)
            state = self._advance(state, train, jnp.float32(rate), jnp.int32(begin), jnp.int32(end))
            steps.append(end)
            both = self._measure(state.params, train, held)
            errors.append((float(both[0].l2), float(both[1].l2)))
            begin = end
            if not all(map(math.isfinite, errors[-1])):
                break
            tell(end / self.steps)
        last = self._measure(state.params, train, held)[1]
        at_train, at_held = zip(*errors, strict=True)
        found = Run(
            target.name,
            seed,
            rate,
            tuple(steps),
            at_train,
            at_held,
            float(last.sup),
            float(last.slopes),
            float(last.length),
            float(jnp.sqrt(train.variance)),
            self.score(last, held),
        )
        return found, state.params

    def score(self, errors: Errors, held: Points) -> float:
        """Root of the loss at points held out, infinite where it is no number."""
        l2, slopes = float(errors.l2), float(errors.slopes)
        found = math.hypot(l2 / math.sqrt(held.variance), slopes) if self.loss == "h1" else l2
        return found if math.isfinite(found) else math.inf

    def picture(self, params: Params, side: int) -> Float[np.ndarray, "S S"]:
        """Values at the centres of side x side pixels."""
        points = jnp.asarray(pixel_centres(side).reshape(-1, 2), jnp.float32)
        return np.asarray(self.network.apply(params, points)).reshape(side, side)

    @cached_property
    def _start(self) -> Callable[[Key[Array, ""]], State]:
        def start(key: Key[Array, ""]) -> State:
            params = self.network.init(key)
            return State(params, ADAM.init(params))

        # LLVM's higher levels take seconds over what runs once.
        return jax.jit(start, compiler_options={"xla_backend_optimization_level": 0})

    @cached_property
    def _advance(self) -> Callable[..., State]:
        return jax.jit(self._some_steps, donate_argnums=0)

    def _some_steps(
        self,
        state: State,
        train: Points,
        rate: Float[Array, ""],
        begin: Int[Array, ""],
        end: Int[Array, ""],
    ) -> State:
        def one(step: Int[Array, ""], state: State) -> State:
            gradient = jax.grad(self.loss_at)(state.params, train)
            moves, moments = ADAM.update(gradient, state.moments)
            pace = rate * share_of_peak(step, self.steps)
            return State(jax.tree.map(lambda p, m: p - pace * m, state.params, moves), moments)

        return jax.lax.fori_loop(begin, end, one, state)

    def loss_at(self, params: Params, at: Points) -> Float[Array, ""]:
        """What is minimised."""
        if self.loss == "l2":
            values = self.network.apply(params, at.points, train=True)
            return jnp.mean((values - at.values) ** 2)
        values, slopes = values_and_slopes(self.network, params, at.points)
        errors = jnp.mean(jnp.sum((slopes - at.slopes) ** 2, axis=1)) / at.square
        return jnp.mean((values - at.values) ** 2) / at.variance + errors

    @cached_property
    def _measure(self) -> Callable[[Params, Points, Points], tuple[Errors, Errors]]:
        def measure(params: Params, train: Points, held: Points) -> tuple[Errors, Errors]:
            # At once, so that the network is compiled once.
            points = jnp.concatenate([train.points, held.points])
            values, slopes = values_and_slopes(self.network, params, points)
            count = len(train.points)
            return (
                errors_of(values[:count], slopes[:count], train),
                errors_of(values[count:], slopes[count:], held),
            )

        return jax.jit(measure)


def errors_of(values: Float[Array, " P"], slopes: Float[Array, "P 2"], at: Points) -> Errors:
    """Of these values and gradients."""
    errors = values - at.values
    apart = jnp.mean(jnp.sum((slopes - at.slopes) ** 2, axis=1))
    length = jnp.abs(jnp.sqrt(jnp.sum(slopes**2, axis=1)) - 1)
    return Errors(
        jnp.sqrt(jnp.mean(errors**2)),
        jnp.max(jnp.abs(errors)),
        jnp.sqrt(apart / at.square),
        jnp.mean(length),
    )


def values_and_slopes(
    network: Network, params: Params, x: Float[Array, "P 2"]
) -> tuple[Float[Array, " P"], Float[Array, "P 2"]]:
    """f and its gradient at each point; points do not see each other."""
    values, pull = jax.vjp(partial(network.apply, params), x)
    return values, pull(jnp.ones_like(values))[0]
