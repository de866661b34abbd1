"""Learning rates by role, and what is frozen."""

from dataclasses import replace
from typing import get_args

import jax
import numpy as np
import optax
import pytest

from experiments.compare.studies import STUDIES
from polycom_jax import InputError, get_activation, models
from polycom_jax import params as pm
from polycom_jax.interop.swap import swap
from polycom_jax.params import Role
from polycom_jax.training import (
    Checkpoints,
    Multipliers,
    OptimConfig,
    abstract_state,
    make_model_step,
    make_optimizer,
    make_schedule,
    make_state,
    put_batch,
    state_from,
)

ALONE = Multipliers(matrix=0, embedding=0, norm=0, router=0)


def test_there_is_a_multiplier_for_every_role():
    assert tuple(vars(Multipliers())) == get_args(Role)


def leaves_by_role(specs, tree):
    flat = jax.tree.leaves(specs, is_leaf=pm.is_spec)
    return [(spec.role, leaf) for spec, leaf in zip(flat, jax.tree.leaves(tree), strict=True)]


def test_after_a_swap_the_coefficients_alone_are_trained(model, meshes, make_batch):
    mesh = meshes["one device"]
    optim = OptimConfig(peak_learning_rate=0.1, clip_norm=None, multipliers=ALONE)
    old = model(activation="swiglu")
    source = make_state(old, OptimConfig(), jax.random.key(0), mesh).params
    batch = put_batch(make_batch(), mesh)
    swapped = swap(old, source, [batch], get_activation("poly_norm_glu"))
    cfg, specs = swapped.cfg, models.specs(swapped.cfg)
    state = state_from(cfg, optim, jax.tree.map(np.array, swapped.params), mesh)
    moments = jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
    coefficients = sum(spec.size for spec in cfg.activation_fn.specs.values()) * cfg.num_layers
    assert sum(leaf.size for leaf in moments) == coefficients
    step, losses, before = make_model_step(cfg, optim, 10, mesh), [], state.params
    before = jax.tree.map(np.array, before)
    for _ in range(5):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if not losses[1:]:  # Of the first gradient, the mean has a tenth.
            own = 10 * optax.tree.norm(optax.tree.get(state.opt_state, "mu"))
            assert float(metrics["grad_norm"]) == pytest.approx(float(own), rel=1e-5)
    assert losses[-1] < losses[0]
    for (role, was), (_, now) in zip(
        leaves_by_role(specs, before), leaves_by_role(specs, state.params), strict=True
    ):
        moved = not np.array_equal(was, now)
        assert moved == (role == "coefficient"), role


def test_an_update_is_multiplied_by_role_and_frozen_ones_do_not_decay(model):
    specs = models.specs(model())
    ones = pm.map_specs(lambda spec: np.ones(spec.shape, np.float32), specs)
    usual = {"peak_learning_rate": 1.0, "clip_norm": None, "weight_decay": 0.5}
    changed = Multipliers(matrix=0.5, embedding=0, coefficient=10)

    def update(**more):
        optimizer = make_optimizer(OptimConfig(**usual, **more), specs, 10**6)
        return leaves_by_role(specs, optimizer.update(ones, optimizer.init(ones), ones)[0])

    factors = {"matrix": 0.5, "embedding": 0, "norm": 1, "coefficient": 10}
    for (role, plain), (_, scaled) in zip(update(), update(multipliers=changed), strict=True):
        np.testing.assert_allclose(scaled, factors[role] * plain, rtol=1e-6)


def test_the_clip_is_of_what_is_trained(model):
    specs = models.specs(model())
    ones = pm.map_specs(lambda spec: np.ones(spec.shape, np.float32), specs)
    optimizer = make_optimizer(OptimConfig(clip_norm=0.5, multipliers=ALONE), specs, 10)
    _, state = optimizer.update(ones, optimizer.init(ones), ones)
    norm = optax.tree.norm(optax.tree.get(state, "mu"))
    assert float(norm) == pytest.approx(0.1 * 0.5, rel=1e-5)


def test_the_former_spelling_is_a_factor_of_the_coefficients_multiplier():
    with pytest.warns(DeprecationWarning, match=r"optim\.multipliers\.coefficient"):
        old = OptimConfig(coefficient_multiplier=3.0, multipliers=Multipliers(coefficient=10))
    assert old == OptimConfig(multipliers=Multipliers(coefficient=30))
    assert replace(old, b1=0.5).multipliers.coefficient == 30  # and is applied once


def test_coefficients_at_rest_count_in_the_clip_and_change_nothing_else(model):
    specs = models.specs(model())
    start = pm.init(specs, jax.random.key(0))
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), start)
    (frozen,) = (arm for arm in STUDIES["controls"].arms if arm.name == "poly_norm_frozen")
    optim = frozen.optimizer(OptimConfig(peak_learning_rate=0.1))
    coefficient = pm.mask(specs, {"coefficient"})
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        optax.add_decayed_weights(0.1, pm.mask(specs, set(optim.decay_roles))),
        optax.masked(optax.set_to_zero(), coefficient),
        optax.scale_by_learning_rate(make_schedule(optim, 10)),
    )
    ends = []
    for optimizer in (make_optimizer(optim, specs, 10), plain):
        params, state = start, optimizer.init(start)
        for _ in range(3):
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    for (role, ours), (_, wanted) in zip(
        leaves_by_role(specs, ends[0]), leaves_by_role(specs, ends[1]), strict=True
    ):
        # a_0 = 0 may end up as a number that no sum feels.
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-36 * (role == "coefficient"))


def test_a_given_rate_makes_the_update_of_a_schedule_with_the_same_state(model):
    specs, optim = models.specs(model()), OptimConfig(schedule="constant")
    ones = pm.map_specs(lambda spec: np.ones(spec.shape, np.float32), specs)
    scheduled, given = make_optimizer(optim, specs, 10), make_optimizer(optim, specs, None)
    state = scheduled.init(ones)
    assert jax.tree.structure(state) == jax.tree.structure(given.init(ones))
    rate = np.float32(optim.peak_learning_rate)
    one = scheduled.update(ones, state, ones)
    other = given.update(ones, state, ones, learning_rate=rate)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"matrix": -1.0}, r"multipliers\.matrix=-1\.0 must be at least 0"),
        (dict.fromkeys(get_args(Role), 0.0), "nothing is trained"),
    ],
)
def test_multipliers_out_of_range_are_refused_by_name(factors, message):
    with pytest.raises(InputError, match=message):
        Multipliers(**factors)


def test_a_model_without_what_is_trained_is_refused(model):
    specs = models.specs(model(activation="gelu"))
    with pytest.raises(InputError, match=r"embedding, matrix, norm are 0, .* nothing is trained"):
        make_optimizer(OptimConfig(multipliers=Multipliers(0, 0, 0)), specs, 10)
    make_optimizer(OptimConfig(multipliers=Multipliers(0, 0, 0)), models.specs(model()), 10)


def test_a_state_is_the_tree_that_earlier_versions_have_saved(model):
    specs = models.specs(model())
    ones = pm.map_specs(lambda spec: np.ones(spec.shape, np.float32), specs)
    earlier = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1, pm.mask(specs, {"matrix"})),
        optax.masked(optax.scale(1.0), pm.mask(specs, {"coefficient"})),
        optax.scale_by_learning_rate(lambda count: 0.1),
    )
    now = make_optimizer(OptimConfig(multipliers=Multipliers(matrix=2)), specs, 10).init(ones)
    assert jax.tree.structure(now) == jax.tree.structure(earlier.init(ones))


def test_a_state_with_frozen_parameters_is_saved_and_lies_as_its_parameters(
    model, meshes, tmp_path
):
    mesh, optim = meshes["data 2, fsdp 2, tensor 2"], OptimConfig(multipliers=Multipliers(norm=0))
    state = make_state(model(), optim, jax.random.key(0), mesh)
    mean = optax.tree.get(state.opt_state, "mu")
    assert mean["embed"].sharding == state.params["embed"].sharding
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        found = checkpoints.restore(abstract_state(model(), optim, mesh))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
