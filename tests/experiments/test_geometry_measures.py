"""What is measured of one network of the study of geometry, on layers that are known."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.geometry.network import Network
from experiments.geometry.study import AT_LOSS, _alignments, _one, _parallelism, _try_all
from experiments.geometry.tasks import pattern_tasks, xor_tasks
from experiments.geometry.train import RECIPES, Group
from polycom_jax.table import get_activation


def test_a_network_is_measured_at_its_start_at_the_first_look_of_equal_loss_and_at_its_end():
    points = xor_tasks((0.5,), (0.0,))[0].points(0)
    rng = np.random.default_rng(0)
    layers = rng.standard_normal((4, len(points.inputs), 6))
    seen = list(zip((0.7, 0.1, 0.05, 0.01), layers, strict=True))
    rows = np.tile(layers[-1], (8, 1))
    found = _one(points, seen, np.stack([rows, -rows]), 0.75)
    start, first, _, end = (_alignments(points, hidden) for hidden in layers)
    assert (found["turn_before"], found["labels_before"]) == (start["turn"], start["labels"])
    assert (found[AT_LOSS], found["turn"]) == (first["turn"], end["turn"])
    assert (found["loss"], found["accuracy"]) == (0.01, 0.75)
    # Tried on fresh rows, here with all signs turned round: not on those that it was trained on.
    same = _one(points, seen, np.stack([rows, rows]), 0.75)
    assert found["decoding"] < 0.5 < same["decoding"]
    assert math.isnan(_one(points, seen[:1], np.stack([rows, rows]), 0.75)[AT_LOSS])


def test_parallelism_is_a_mean_over_labels():
    points = pattern_tasks()[1].points(0)  # two bits
    place = {(1, 1): (1, 0), (1, -1): (0, 1), (-1, 1): (0, 0), (-1, -1): (0, -1)}
    hidden = np.array([place[int(a), int(b)] for a, b in points.labels], np.float64)
    scores = [
        _parallelism(replace(points, labels=points.labels[:, [i]], others=rest), hidden)
        for i, rest in enumerate((points.labels[:, [1]], points.labels[:, [0]]))
    ]
    assert scores == pytest.approx([0.5**0.5, -(0.5**0.5)])
    assert _parallelism(points, hidden) == pytest.approx(0, abs=1e-12)


def test_the_loss_of_a_network_is_in_nats_and_a_mean_over_labels():
    net = Network(get_activation("relu"), dim=5, labels=2, width=8, readout="fixed")
    group = Group(net, RECIPES["xor"], [], ())
    params, x = net.init(jax.random.key(0)), jnp.ones((3, 5))
    y = np.array([[1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]])
    p = 1 / (1 + np.exp(-y * np.asarray(net.logits(params, x), np.float64)))
    assert group._loss(params, x, jnp.asarray(y)) == pytest.approx(-np.log(p).mean(), rel=1e-5)


@dataclass(frozen=True)
class Shown:
    """Its hidden layer is its input, and its output the first coordinate."""

    dim: int

    def hidden(self, params: Any, x: jax.Array) -> jax.Array:
        return x + params["b"]

    def logits(self, params: Any, x: jax.Array) -> jax.Array:
        return x[:, :1]


def test_classifiers_are_tried_on_points_with_the_noise_that_is_for_trying():
    (task,) = xor_tasks((0.5,), (0.0,))  # trained without noise
    net: Any = Shown(80)
    group = Group(net, RECIPES["xor"], [task], (0, 1))
    rows, right = jax.device_get(_try_all(group, {"b": jnp.zeros((1, 2))}))
    assert rows.shape == (1, 2, 2, 128, 80)
    for seed, points in enumerate(group.points[0]):
        off = rows[0, seed] - np.tile(points.inputs, (32, 1))[None]
        assert off.std() == pytest.approx(task.test_noise, rel=0.05)
        labels = np.tile(points.labels[:, 0], 32)
        assert right[0, seed] == pytest.approx(np.mean(rows[0, seed, :, :, 0] * labels > 0))
    assert (rows[0, 0, 0] != rows[0, 0, 1]).any()  # those that are tried are others
