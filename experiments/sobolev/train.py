"""Fits every network to every target: learning rates first, then the seeds, then the errors."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.run.folder import Workdir
from experiments.run.kept_state import abstract
from experiments.run.signals import StopRequest
from experiments.sobolev import choice
from experiments.sobolev.fit import Data, Fit, Runs, State, Trainable
from experiments.sobolev.mlp import mlp_of_size
from experiments.sobolev.options import TrainOptions, named_target
from experiments.sobolev.store import Store
from experiments.terminal.program import Stop
from polycom_jax._errors import require
from polycom_jax.approximation.sobolev import Grid, derivative_norms
from polycom_jax.approximation.targets import Target
from polycom_jax.params import Params
from polycom_jax.training.checkpoint import Checkpoints

Row = dict[str, Any]

CHUNKS = 20
"""Parts of a fit, after each of which it may be saved or stopped."""

SELECTION_SEED = 1_000_000
"""Learning rates are chosen with seeds from here on, which the results do not share."""

MAX_EXTENSIONS = 3


@dataclass(frozen=True)
class Contestant:
    """A network in the sweep.

    Attributes:
        activation: its name among others of its size; for MLPs that of their activation.
        size: the number of parameters asked for; where networks are alike, of training points.
        network: with as many parameters, or a few less.
        points: that it is trained on; None: all.
    """

    activation: str
    size: int
    network: Trainable
    points: int | None = None

    @property
    def name(self) -> str:
        """Of its cell in the store."""
        return f"{self.size}-{self.activation.replace(' ', '_')}"


def perceptrons(options: TrainOptions) -> list[Contestant]:
    """One MLP for each size and activation, small ones first."""
    return [
        Contestant(
            activation,
            size,
            mlp_of_size(activation, size, dim=options.dim, layers=options.layers),
        )
        for size in options.sizes
        for activation in options.activations
    ]


def check_memory(options: TrainOptions, contestants: Sequence[Contestant]) -> None:
    """Raises `InputError` if the fits of a network would take more than `options.memory`."""
    runs = max(len(options.targets) * options.seeds, len(options.learning_rates))
    points = 8 * options.points * (options.dim + len(options.targets) + 1)  # once in float64
    for each in contestants:
        tree = jax.eval_shape(each.network.init, jax.random.key(0), jnp.int32(0))
        numbers = sum(leaf.size for leaf in jax.tree.leaves(tree))
        # Float32, four of each: parameters, gradients and two moments.
        needed = 16 * numbers * runs + points
        require(
            needed <= options.memory,
            f"{runs} fits of {each.activation} with {each.network.size:,} parameters"
            f" ({numbers:,} in dense matrices) to {options.points:,} points take"
            f" {needed / 2**20:,.0f} MiB, more than memory={options.memory}; take smaller"
            " sizes, fewer points or seeds, or raise it.",
        )


@dataclass(frozen=True)
class Study:
    """The sweep.

    Attributes:
        options: how and to what networks are fitted.
        store: the folder that finished cells and states lie in.
        stop: whether the user asked for the end.
        tell: takes (share done, what is being done).
    """

    options: TrainOptions
    store: Store
    stop: StopRequest
    tell: Callable[[float, str], None]

    def run(
        self,
        contestants: Sequence[Contestant],
        done: Callable[[Row, int, int], None],
        notify: Callable[[str], None] = lambda text: None,
    ) -> list[Row]:
        """All cells in order; those that are in the store are not fitted again.

        Args:
            contestants: the networks.
            done: called behind each cell with (the cell, how many are done, how many there are).
            notify: takes a line where the folder has to be waited for.

        Returns:
            One cell a network: "activation", "size", "parameters", "learning_rate", "selection"
            (one row a rate tried) and "runs" (one row a target and seed with "sup", "l2" and
            "h1").

        Raises:
            InputError: another program is fitting in the same folder.
        """
        # A state is saved by one program at a time.
        with Workdir(self.store.root).locked("--out", notify=notify):
            return self._run(contestants, done)

    def _run(
        self, contestants: Sequence[Contestant], done: Callable[[Row, int, int], None]
    ) -> list[Row]:
        weights = np.array([each.network.size + 300.0 for each in contestants])  # a constant part
        shares = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
        cells = []
        for index, each in enumerate(contestants):
            cell = self.store.cell(each.name)
            if cell is None:
                begin, end = shares[index : index + 2]
                cell = self._cell(each, lambda s, w, a=begin, b=end: self.tell(a + s * (b - a), w))
                self.store.keep_cell(each.name, cell)
                # No other cell has its programs, and each takes memory maps, which Linux counts.
                jax.clear_caches()
            cells.append(cell)
            done(cell, index + 1, len(contestants))
        return cells

    @cached_property
    def targets(self) -> list["Standardised"]:
        """Those that are fitted, and behind them those for learning rates."""
        options = self.options
        names = (*options.targets, *options.chosen_on)
        return [Standardised.of(named_target(name, options.dim)) for name in names]

    @cached_property
    def data(self) -> Data:
        """The training points and all targets there."""
        options = self.options
        points = np.random.default_rng(0).random((options.points, options.dim))
        with jax.enable_x64(True):
            x = jnp.asarray(points)
            values = [np.asarray(target(x)) for target in self.targets]
            slopes = [np.asarray(slopes_of(target, x)) for target in self.targets]
        arrays = [points, np.stack(values), *([np.stack(slopes)] if options.loss == "h1" else [])]
        return Data(*(jnp.asarray(array, jnp.float32) for array in arrays))

    def _cell(self, each: Contestant, tell: Callable[[float, str], None]) -> Row:
        options, name = self.options, each.name
        fit = Fit(each.network, options.steps, options.batch_size, each.points)
        selection = self._selection(name, fit, lambda s, w: tell(s / 2, w))
        rate = selection[choice.best(selection, options.loss)]["learning_rate"]
        pairs = [(t, s) for t in range(len(options.targets)) for s in range(options.seeds)]
        runs = Runs.of((rate, t, s) for t, s in pairs)
        state = self._fit(
            f"{name}-runs", fit, runs, lambda s: tell(0.5 + s / 2, f"{name}: fitting")
        )
        errors = self.errors(each.network, state.params, runs)
        return {
            "activation": each.activation,
            "size": each.size,
            "parameters": each.network.size,
            "learning_rate": rate,
            "selection": selection,
            "runs": [
                {"target": options.targets[t], "seed": s, **error}
                for (t, s), error in zip(pairs, errors, strict=True)
            ],
        }

    def _selection(self, name: str, fit: Fit, tell: Callable[[float, str], None]) -> list[Row]:
        """What `_select` finds; what is in the store is not looked for again."""
        stored = self.store.cell(f"{name}-search")
        if stored is None:
            stored = {"selection": self._select(name, fit, tell)}
            self.store.keep_cell(f"{name}-search", stored)
        return stored["selection"]

    def _select(self, name: str, fit: Fit, tell: Callable[[float, str], None]) -> list[Row]:
        """One row a learning rate, of `choice.tried` over targets and some seeds.

        About as many runs as in the fits that follow.
        """
        rates, tried = list(self.options.learning_rates), list[Row]()
        for attempt in range(1 + MAX_EXTENSIONS):
            tried += self._try(f"{name}-rates{attempt}", fit, rates, tell)
            tried.sort(key=lambda row: row["learning_rate"])
            best = choice.best(tried, self.options.loss)
            if 0 < best < len(tried) - 1:
                return tried
            factor = rates[-1] / rates[-2] if best else rates[0] / rates[1]
            edge = tried[best]["learning_rate"]
            rates = sorted(edge * factor**i for i in range(1, len(rates) + 1))
        raise Stop(
            f"{name}: the best learning rate lies outside of"
            f" [{tried[0]['learning_rate']:.1e}, {tried[-1]['learning_rate']:.1e}]; give other"
            " --learning-rates.",
            code=1,
        )

    def _try(
        self, name: str, fit: Fit, rates: Sequence[float], tell: Callable[[float, str], None]
    ) -> list[Row]:
        options, count = self.options, len(rates)
        places = range(len(options.targets), len(self.targets))
        seeds = max(1, len(options.targets) * options.seeds // (count * len(places)))
        runs = Runs.of(
            (rate, place, SELECTION_SEED + s)
            for rate in rates
            for place in places
            for s in range(seeds)
        )
        state = self._fit(name, fit, runs, lambda s: tell(s, f"{name}: learning rates"))
        errors = self.errors(fit.network, state.params, runs)
        own = len(places) * seeds
        return [
            choice.tried(float(rate), errors[i * own : (i + 1) * own], options.loss, seeds)
            for i, rate in enumerate(rates)
        ]

    def _fit(self, name: str, fit: Fit, runs: Runs, tell: Callable[[float], None]) -> State:
        """The finished fits, going on from the newest saved state."""
        folder = self.store.state(name)
        state: Any = fit.start(runs)
        saved = time.monotonic()
        with Checkpoints(folder, keep_last=1, keep_best=0) as checkpoints:
            step = checkpoints.latest_step() or 0
            if step:
                state = checkpoints.restore(abstract(state))
            tell(step / fit.steps)
            while step < fit.steps:
                begin, step = step, min(fit.steps, step + math.ceil(fit.steps / CHUNKS))
                state = jax.block_until_ready(fit.advance(state, runs, self.data, begin, step))
                stopping = self.stop.due(step)
                if stopping or time.monotonic() - saved >= self.options.save_every_s:
                    checkpoints.save(step, state)
                    saved = time.monotonic()
                if stopping:
                    checkpoints.wait()
                    raise self.stop.reached(step)
                tell(step / fit.steps)
        self.store.forget(name)
        return state

    def errors(self, network: Trainable, params: Params, runs: Runs) -> list[Row]:
        """The "sup", "l2" and "h1" of each run; infinite where it diverged."""
        grid = Grid(self.options.dim, self.options.cells)
        # One function for all runs and targets, so that it is compiled once a network.
        residual = residual_of(network, self.targets)
        rows = []
        for run, target in enumerate(np.asarray(runs.targets)):
            own = jax.tree.map(lambda leaf, run=run: leaf[run], params)
            f = Partial(residual, own, jnp.int32(target))
            # All are in W^{1,inf}: the targets and every activation are.
            sups = derivative_norms(f, grid, order=1, smoothness=1)
            squares = derivative_norms(f, grid, order=1, p=2, smoothness=1)
            value = (0,) * self.options.dim
            found = {
                "sup": sups[value],
                "l2": squares[value],
                "h1": math.sqrt(sum(norm**2 for norm in squares.values())),
            }
            rows.append({k: v if math.isfinite(v) else math.inf for k, v in found.items()})
        return rows


@dataclass(frozen=True, eq=False)
class Standardised:
    """(target - mean) / deviation.

    Attributes:
        target: the function.
        mean: its integral.
        deviation: root of its variance.
    """

    target: Target
    mean: float
    deviation: float

    @classmethod
    def of(cls, target: Target) -> "Standardised":
        """By quadrature, to 1e-4 or better."""
        grid = Grid(target.dim, cells={1: 64, 2: 16, 3: 4}[target.dim])
        with jax.enable_x64(True):
            values = np.asarray(target(jnp.asarray(grid.points)))
        mean = float(grid.weights @ values)
        return cls(target, mean, math.sqrt(float(grid.weights @ (values - mean) ** 2)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The values at points [P, d]."""
        return (self.target(x) - self.mean) / self.deviation


def slopes_of(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Gradients [P, d] of a function that maps points [P, d] to values [P] one by one."""
    values, pull = jax.vjp(f, x)
    return pull(jnp.ones_like(values))[0]


def residual_of(network: Trainable, targets: Sequence[Standardised]) -> Callable[..., jax.Array]:
    """(parameters, index of the target, points) -> network - target."""

    def residual(params: Params, target: jax.Array, x: jax.Array) -> jax.Array:
        return network.apply(params, x) - jax.lax.switch(target, targets, x)

    return residual
