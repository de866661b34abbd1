"""The moving average of the weights: its formula, where it lies, and how it is read back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polycom_jax import InputError
from polycom_jax.training import (
    Checkpoints,
    OptimConfig,
    abstract_state,
    average_of,
    make_model_step,
    make_state,
    make_train_step,
    put_batch,
    start_state,
)
from polycom_jax.training.weight_average import averaging, newest_share

DECAY = 0.75


def slope(params: Any, batch: Any) -> Any:
    return jnp.sum(params["w"] * batch) + params["b"] * batch[0]


def small(decay: float | None = DECAY):
    optimizer: Any = optax.with_extra_args_support(optax.sgd(0.5, momentum=0.9))
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    optimizer = optimizer if decay is None else averaging(optimizer, decay)
    return make_train_step(slope, optimizer), start_state(params, optimizer), optimizer, params


def test_it_is_the_weighted_mean_of_the_parameters_and_changes_none_of_them():
    step, state, _, _ = small()

    def mean(state) -> Any:
        return average_of(state.opt_state)

    plain, bare, _, _ = small(None)
    np.testing.assert_array_equal(mean(state)["w"], state.params["w"])
    assert average_of(bare.opt_state) is None
    seen = []
    for t in range(6):
        # The fourth update is left out, and so is no part of the mean.
        batch = jnp.array([1.0, np.nan if t == 3 else t])
        state, bare = step(state, batch)[0], plain(bare, batch)[0]
        jax.tree.map(np.testing.assert_array_equal, state.params, bare.params)
        if t != 3:
            seen.append(np.asarray(state.params["w"], np.float64))
        weights = DECAY ** np.arange(len(seen))[::-1]
        wanted = np.average(seen, axis=0, weights=weights)
        np.testing.assert_allclose(mean(state)["w"], wanted, rtol=1e-6)


def test_weights_of_a_long_average_keep_their_digits():
    for count in (1, 2, 10_000):
        got = float(newest_share(0.9999, jnp.int32(count)))
        assert got == pytest.approx((1 - 0.9999) / (1 - 0.9999**count), rel=1e-6)


def test_it_lies_as_the_parameters_do_and_other_runs_have_none(model, meshes):
    cfg, mesh = model(), meshes["fsdp 4, tensor 2"]
    with_it = abstract_state(cfg, OptimConfig(ema_decay=DECAY), mesh)
    without = abstract_state(cfg, OptimConfig(), mesh)
    average = average_of(with_it.opt_state)
    assert jax.tree.map(lambda x: x.sharding, average) == jax.tree.map(
        lambda x: x.sharding, with_it.params
    )
    assert jax.tree.structure(with_it.opt_state.inner) == jax.tree.structure(without.opt_state)


def test_checkpoints_hold_it_and_a_resumed_run_has_its_bits(tmp_path):
    step, state, optimizer, params = small()
    batches = [jnp.array([1.0, t]) for t in range(4)]
    with Checkpoints(tmp_path) as checkpoints:
        for batch in batches[:2]:
            state, _ = step(state, batch)
        checkpoints.save(2, state)
        wanted = jax.tree.map(np.array, average_of(state.opt_state))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda x: x.update(sharding=place), abstract)
        found, average = checkpoints.restore_params(abstract, averaged=True)
        assert found == 2
        jax.tree.map(np.testing.assert_array_equal, average, wanted)
        again = checkpoints.restore(abstract_state(params, optimizer))
    for batch in batches[2:]:
        (state, _), (again, _) = step(state, batch), step(again, batch)
    jax.tree.map(np.testing.assert_array_equal, state, again)


@pytest.mark.slow
def test_a_model_s_step_keeps_it_beside_frozen_roles(model, meshes, make_batch):
    from polycom_jax.training import Multipliers

    mesh, cfg = meshes["data 2, fsdp 2, tensor 2"], model()
    optim = OptimConfig(ema_decay=DECAY, multipliers=Multipliers(embedding=0))
    state = make_state(cfg, optim, jax.random.key(0), mesh)
    step = make_model_step(cfg, optim, 10, mesh)
    start = jax.tree.map(np.array, state.params)
    for seed in range(2):
        state, _ = step(state, put_batch(make_batch(seed), mesh))
    average: Any = average_of(state.opt_state)
    np.testing.assert_array_equal(average["embed"], start["embed"])
    mean, last = average["final_norm"], state.params["final_norm"]
    assert 0 < float(jnp.abs(mean - last).max()) < float(jnp.abs(last - start["final_norm"]).max())


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_a_decay_that_is_none_is_refused(value):
    with pytest.raises(InputError, match=r"ema_decay=.* must be above 0 and below 1"):
        OptimConfig(ema_decay=value)
