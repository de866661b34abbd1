"""Every way to split eight devices trains to the losses of one device, dense and mixture.

All of them take a quarter of an hour: `-m exhaustive`. A mixture whose tokens, experts and weights
are split is among the longer tests.
"""

import functools
import itertools
from collections.abc import Mapping

import jax
import numpy as np
import pytest

from polycom_jax.models import MoEConfig
from polycom_jax.sharding import MESH_AXES, make_mesh
from polycom_jax.training import OptimConfig, make_model_step, make_state, put_batch

STEPS = 20
OPTIM = OptimConfig(peak_learning_rate=2e-3, warmup_steps=5)
SPLITS = [
    dict(zip(MESH_AXES, sizes, strict=True))
    for sizes in itertools.product((1, 2, 4, 8), repeat=len(MESH_AXES))
    if np.prod(sizes) == 8
]
ACTIVATIONS = ("poly_norm", "poly_relu", "poly_prelu", "poly_relu_norm", "poly_norm_glu")
MODELS = {"dense": MoEConfig(), "moe": MoEConfig(num_experts=8, top_k=2)}


def name(split: Mapping[str, int]) -> str:
    return " ".join(f"{axis}{size}" for axis, size in split.items() if size > 1)


@pytest.fixture(scope="module")
def losses(model, make_batch):
    @functools.cache
    def run(kind: str, activation: str, sizes: tuple[int, ...] | None) -> list[float]:
        cfg = model(
            activation=activation,
            moe=MODELS[kind],
            num_heads=8,
            num_kv_heads=8,
            head_dim=4,
        )
        mesh = make_mesh(devices=jax.devices()[:1]) if sizes is None else make_mesh(*sizes)
        step = make_model_step(cfg, OPTIM, STEPS, mesh)
        state = make_state(cfg, OPTIM, jax.random.key(3), mesh)
        found = []
        for seed in range(STEPS):
            state, metrics = step(state, put_batch(make_batch(seed % 4), mesh))
            found.append(float(metrics["loss"]))
            if kind == "moe":
                assert metrics["dropped_share"] == 0
        return found

    return run


def check(losses, kind, activation, split):
    one = losses(kind, activation, None)
    assert one[-1] < one[3] - 0.01  # it learns: the batches come five times
    np.testing.assert_allclose(losses(kind, activation, tuple(split.values())), one, rtol=1e-5)


@pytest.mark.slow
def test_a_mixture_loses_the_same_on_a_mesh_of_three_axes(losses):
    check(losses, "moe", "poly_norm", dict(zip(MESH_AXES, (2, 2, 1, 2), strict=True)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("split", SPLITS, ids=name)
def test_every_model_loses_the_same_on_every_split(losses, split, activation, kind):
    check(losses, kind, activation, split)
