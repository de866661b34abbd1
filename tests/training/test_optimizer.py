import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polycom_jax import InputError, models
from polycom_jax import params as pm
from polycom_jax.training import Multipliers, OptimConfig, make_optimizer, make_schedule

OPTIM = OptimConfig(peak_learning_rate=2e-3, warmup_steps=10)


@pytest.fixture
def specs(model):
    return models.specs(model())


def rates(optim: OptimConfig, steps: int, count: int) -> np.ndarray:
    return np.asarray(jax.vmap(make_schedule(optim, steps))(jnp.arange(count)))


def test_the_rate_rises_linearly_to_the_peak_and_falls_along_a_cosine_to_its_end():
    values = rates(OPTIM, 50, 60)
    update = np.arange(1, 61)
    fall = 0.1 + 0.9 * (1 + np.cos(np.pi * (update - 10) / 40)) / 2
    expected = 2e-3 * np.where(update <= 10, update / 10, np.where(update < 50, fall, 0.1))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert values[9] == np.float32(2e-3)
    assert values[49] == values[59] == pytest.approx(2e-4, rel=1e-6)


def test_without_warm_up_the_first_rate_is_next_to_the_peak():
    assert rates(OptimConfig(peak_learning_rate=1.0), 1000, 1)[0] == pytest.approx(1, abs=1e-5)


def test_a_run_shorter_than_its_warm_up_never_leaves_it():
    np.testing.assert_allclose(rates(OPTIM, 4, 4), 2e-4 * np.arange(1, 5), rtol=1e-6)


def test_a_given_horizon_does_not_move_with_the_length_of_the_run():
    optim = OptimConfig(warmup_steps=2, decay_steps=20)
    np.testing.assert_array_equal(rates(optim, 20, 20), rates(optim, 40, 20))
    assert not np.array_equal(rates(OPTIM, 20, 20), rates(OPTIM, 40, 20))


@pytest.mark.parametrize("experts", [0, 4])
def test_decay_reaches_matrices_and_embeddings_but_neither_norms_nor_coefficients(model, experts):
    specs = models.specs(model(moe=models.MoEConfig(num_experts=experts, top_k=1)))
    params = pm.map_specs(lambda spec: jnp.ones(spec.shape), specs)
    optimizer = make_optimizer(OptimConfig(peak_learning_rate=1e-2, weight_decay=0.5), specs, 10**6)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    by_role = {"matrix": -5e-3, "embedding": -5e-3, "norm": 0.0, "coefficient": 0.0}
    by_role |= {"router": -5e-3} if experts else {}
    seen = set()
    for spec, update in zip(
        jax.tree.leaves(specs, is_leaf=pm.is_spec), jax.tree.leaves(updates), strict=True
    ):
        seen.add(spec.role)
        np.testing.assert_allclose(update, by_role[spec.role], rtol=1e-5)
    assert seen == set(by_role)


@pytest.mark.parametrize(("norm", "expected"), [(8.0, 0.5), (0.25, 0.25)])
def test_gradients_are_cut_at_the_global_norm_and_left_alone_below_it(specs, norm, expected):
    params = pm.map_specs(lambda spec: jnp.ones(spec.shape), specs)
    grads = params
    grads = optax.tree.scale(norm / optax.tree.norm(grads), grads)
    optimizer = make_optimizer(OptimConfig(b1=0.9, clip_norm=0.5), specs, 10)
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    mean = optax.tree.get(state, "mu")
    # Adam's update does not change with the gradient's scale; the mean of gradients does.
    assert float(optax.tree.norm(mean)) == pytest.approx(0.1 * expected, rel=1e-5)


def test_several_updates_are_those_of_adamw_in_float64(specs, initial):
    optim = OptimConfig(
        peak_learning_rate=1e-2,
        warmup_steps=2,
        b1=0.8,
        b2=0.97,
        eps=0.1,
        clip_norm=None,
        multipliers=Multipliers(coefficient=3.0),
    )
    params = initial("one device").params
    optimizer = make_optimizer(optim, specs, 6)
    state = optimizer.init(params)

    @jax.jit
    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    flat_specs = jax.tree.leaves(specs, is_leaf=pm.is_spec)
    expected = [np.asarray(p, np.float64) for p in jax.tree.leaves(params)]
    mean = [np.zeros_like(p) for p in expected]
    square = [np.zeros_like(p) for p in expected]
    for step in range(5):
        key = jax.random.key(step)
        grads = jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), params)
        params, state = update(grads, state, params)
        t = step + 1
        rate = 1e-2 * (t / 2 if t <= 2 else 0.1 + 0.9 * (1 + math.cos(math.pi * (t - 2) / 4)) / 2)
        for i, (spec, grad) in enumerate(zip(flat_specs, jax.tree.leaves(grads), strict=True)):
            g = np.asarray(grad, np.float64)
            mean[i] = 0.8 * mean[i] + 0.2 * g
            square[i] = 0.97 * square[i] + 0.03 * g * g
            move = mean[i] / (1 - 0.8**t) / (np.sqrt(square[i] / (1 - 0.97**t)) + 0.1)
            if spec.role in ("matrix", "embedding"):
                move = move + 0.1 * expected[i]
            multiplier = 3.0 if spec.role == "coefficient" else 1.0
            expected[i] = expected[i] - rate * multiplier * move
    for got, want in zip(jax.tree.leaves(params), expected, strict=True):
        # Five updates of at most 0.03 each, rounded in float32.
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=5 * 0.03 * 2e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peak_learning_rate", 0.0),
        ("peak_learning_rate", float("nan")),
        ("final_learning_rate_fraction", 1.5),
        ("warmup_steps", -1),
        ("decay_steps", 0),
        ("b2", 1.0),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("decay_roles", ("matrices",)),
        ("clip_norm", 0.0),
        ("accumulation_steps", 0),
        ("coefficient_multiplier", -1.0),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        OptimConfig(**{field: value})


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(InputError, match="steps=0"):
        make_schedule(OPTIM, 0)
