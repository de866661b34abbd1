"""Trains all networks of a study, and measures them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.geometry.network import Network
from experiments.geometry.tasks import Points, Task
from experiments.geometry.train import RECIPES, Group, Recipe
from polycom_jax.analysis.decoding import cross_condition, linear_svm
from polycom_jax.analysis.geometry import (
    centred_kernel,
    kernel_alignment,
    orthogonal_alignments,
    pairings,
    parallelism,
    participation_ratio,
)
from polycom_jax.params import Params
from polycom_jax.table import Activation

ROWS = 128
"""Noisy hidden rows, at least, that a classifier is trained on, and as many that it is tried on."""
OTHERS = 2
"""Dichotomies besides the labels, at most, that are decoded, and by which conditions are split."""
EQUAL_LOSS = 0.1
"""Networks are compared a second time at the first look (`Group.steps`) at which their loss is at
most this, in nats. They can be below it, by as much as the loss falls from one look to the next."""
AT_LOSS = "turn_at_loss"
"""The measure of that comparison."""

MEASURES: Mapping[str, str] = {
    "inputs": "centred alignment with the inputs' kernel, both kernels made orthogonal",
    "labels": "the same with the labels' kernel",
    "turn": "share of the way from the inputs' kernel (0) to the labels' (1), as an angle",
    "input_alignment": "centred alignment with the inputs' kernel as it is",
    "label_alignment": "centred alignment with the labels' kernel as it is",
    "parallelism": "parallelism score of each label, mean over labels",
    "ccgp": "cross-condition generalisation of each label, mean over labels",
    "decoding": "accuracy of linear classifiers of dichotomies that no label asks for",
    "dimension": "participation ratio",
    "accuracy": "of the network's own outputs, with noise",
    "loss": "of the network, without noise, in nats a label",
    "inputs_before": "`inputs` of the network as it was initialised",
    "labels_before": "`labels` of the network as it was initialised",
    "turn_before": "`turn` of the network as it was initialised",
    AT_LOSS: f"`turn` at the first look with a loss of at most {EQUAL_LOSS}; none: there is none",
}
"""What is measured of a hidden layer -> what it is. Kernels are those of points without noise."""

Numbers = dict[str, list[float]]
"""Measure -> one number a seed; NaN where there is none."""


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        activations: by name.
        tasks: all of them.
        seeds: how many.
        width: of hidden layers.
        steps: in place of each recipe's own; None: those.
    """

    activations: Mapping[str, Activation]
    tasks: Sequence[Task]
    seeds: int
    width: int
    steps: int | None

    def groups(self) -> list[tuple[str, Group]]:
        """(activation, group), tasks of one shape together."""
        shapes = dict.fromkeys((task.family, task.labels) for task in self.tasks)
        return [
            (name, self._group(act, [t for t in self.tasks if (t.family, t.labels) == shape]))
            for name, act in self.activations.items()
            for shape in shapes
        ]

    def _group(self, act: Activation, tasks: Sequence[Task]) -> Group:
        recipe: Recipe = RECIPES[tasks[0].family]
        if self.steps is not None:
            recipe = replace(recipe, steps=self.steps)
        dim = tasks[0].points(0).inputs.shape[1]
        network = Network(act, dim, tasks[0].labels, self.width, recipe.readout)
        _ = network.specs  # a width that the activation cannot have is refused before training
        return Group(network, recipe, tasks, range(self.seeds))

    def cost(self, group: Group) -> float:
        """About what a group costs, for the time left: multiplications of training."""
        rows = group.recipe.copies * len(group.points[0][0].inputs)
        nets = len(group.tasks) * len(group.seeds)
        maps = 1 + group.network.activation.gated
        return nets * group.recipe.steps * rows * group.network.dim * self.width * maps


def measure(group: Group, tell: Callable[[float], None]) -> dict[str, Numbers]:
    """Trains a group; task -> what came of it."""
    params, probes = group.train(tell)
    noisy, correct = jax.device_get(_try_all(group, params))
    return {
        task.name: _by_measure(
            _one(
                group.points[i][j],
                [(probe.loss[i, j], probe.hidden[i, j]) for probe in probes],
                noisy[i, j],
                float(correct[i, j]),
            )
            for j in range(len(group.seeds))
        )
        for i, task in enumerate(group.tasks)
    }


def _by_measure(rows: Iterable[Mapping[str, float]]) -> Numbers:
    found = list(rows)
    return {name: [float(row[name]) for row in found] for name in MEASURES}


def _copies(points: int) -> int:
    return -(-ROWS // points)


def _try_all(group: Group, params: Params) -> Any:
    """Hidden rows of fresh noise [T, S, 2, copies x P, W], and shares of labels that are right."""
    count = len(group.points[0][0].inputs)
    shape = (2, _copies(count) * count, group.network.dim)
    sizes = jnp.array([task.test_noise for task in group.tasks], jnp.float32)

    def one(params: Params, x: Any, y: Any, size: Any, seed: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), 1)
        copies = _copies(count)
        rows = jnp.tile(x, (copies, 1))[None] + size * jax.random.normal(key, shape)
        hidden = jax.vmap(lambda each: group.network.hidden(params, each))(rows)
        outputs = jax.vmap(lambda each: group.network.logits(params, each))(rows)
        return hidden, jnp.mean(outputs * jnp.tile(y, (copies, 1))[None] > 0)

    over_seeds = jax.vmap(one, (0, 0, 0, None, 0))
    run = jax.jit(jax.vmap(over_seeds, (0, 0, 0, 0, None)))
    return run(params, group.data.inputs, group.data.labels, sizes, jnp.array(group.seeds))


def _one(
    points: Points,
    seen: Sequence[tuple[float, Float[np.ndarray, "P W"]]],
    noisy: Float[np.ndarray, "2 N W"],
    accuracy: float,
) -> dict[str, float]:
    """All measures of one network: `seen` holds losses and hidden layers from start to end."""
    loss, hidden = seen[-1]
    finite = bool(np.isfinite(hidden).all() and np.isfinite(noisy).all())
    if not finite:
        return dict.fromkeys(MEASURES, math.nan)
    found, before = _alignments(points, hidden), _alignments(points, seen[0][1])
    reached = next((each for each in seen if each[0] <= EQUAL_LOSS), None)
    return {
        **found,
        "parallelism": _parallelism(points, hidden),
        **_classified(points, noisy),
        "dimension": participation_ratio(hidden),
        "accuracy": accuracy,
        "loss": float(loss),
        **{f"{name}_before": before[name] for name in ("inputs", "labels", "turn")},
        AT_LOSS: _alignments(points, reached[1])["turn"] if reached else math.nan,
    }


def _alignments(points: Points, hidden: Float[np.ndarray, "P W"]) -> dict[str, float]:
    own, inputs, labels = map(centred_kernel, (hidden, points.inputs, points.labels))
    raw = kernel_alignment(own, inputs), kernel_alignment(own, labels)
    between = kernel_alignment(inputs, labels)
    x, y = orthogonal_alignments(*raw, between)
    # The two kernels lie between the axes, equally far from them: (90 degrees - apart) / 2.
    apart = math.acos(between)
    turned = math.atan2(y, x) - (math.pi / 2 - apart) / 2
    return {
        "inputs": x,
        "labels": y,
        "turn": turned / apart,
        "input_alignment": raw[0],
        "label_alignment": raw[1],
    }


def _parallelism(points: Points, hidden: Float[np.ndarray, "P W"]) -> float:
    scores = [parallelism(hidden, pairings(*each)) for each in _one_against_the_rest(points)]
    return float(np.mean(scores))


def _one_against_the_rest(points: Points) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Each label, and all other dichotomies, those that are labels first."""
    for i, label in enumerate(points.labels.T):
        yield label, np.concatenate([np.delete(points.labels, i, axis=1), points.others], axis=1)


def _splits(points: Points) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Each label, and the dichotomies that split its conditions, one a row."""
    return ((label, rest[:, :OTHERS].T) for label, rest in _one_against_the_rest(points))


def ccgp_ceiling(points: Points) -> float:
    """The most that `ccgp` can be, of any hidden layer.

    On one side of a dichotomy that is the product of two labels, these are equal or opposite, so
    that they have the same classifier up to its sign; on the other side it is the other way round,
    so that it is right for at most one of them. Labels and dichotomies are closed under products.
    """
    tried = {(tuple(y), tuple(split)) for y, splits in _splits(points) for split in splits}
    shared = sum((tuple(np.multiply(y, split)), split) in tried for y, split in tried)
    return 1 - shared / len(tried) / 2


def _classified(points: Points, noisy: Float[np.ndarray, "2 N W"]) -> dict[str, float]:
    """CCGP of the labels, and how well other dichotomies are decoded."""
    rows, fresh = noisy
    copies = len(rows) // len(points.inputs)
    general = []
    for label, splits in _splits(points):
        # Either side of another dichotomy has as many points of one label as of the other.
        sides = [side * other > 0 for other in splits for side in (1, -1)]
        seen = [np.tile(side, copies) for side in sides]
        general.append(cross_condition(rows, np.tile(label, copies), seen))
    others = [np.tile(other, copies) for other in points.others[:, :OTHERS].T]
    decoded = [linear_svm(rows, other).accuracy(fresh, other) for other in others]
    return {"ccgp": float(np.mean(general)), "decoding": float(np.mean(decoded))}
