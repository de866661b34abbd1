"""Training in float16: a scale of the loss that follows what gradients bear."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

from polycom_jax._errors import InputError
from polycom_jax.training import (
    Checkpoints,
    OptimConfig,
    TrainState,
    abstract_state,
    make_model_step,
    make_state,
    make_train_step,
    put_batch,
    start_state,
)
from polycom_jax.training.loss_scale import (
    FIRST,
    GROWTH_INTERVAL,
    LEAST,
    MOST,
    ScaledLossStats,
    at_largest_scale,
)

OPTIM = OptimConfig(peak_learning_rate=1e-2, warmup_steps=2, loss_scaling="dynamic")


def follow(watch: ScaledLossStats, goods: list[bool]) -> list[float]:
    """The scale after each of these steps."""
    after, scales = jax.jit(ScaledLossStats.after), []
    for good in goods:
        watch, _ = after(watch, jnp.float32(3.0), jnp.asarray(good))  # the gradient overflows
        scales.append(float(watch.loss_scale))
    return scales


def scale_of(state: TrainState) -> Float[Array, ""]:
    assert isinstance(state.watch, ScaledLossStats)
    return state.watch.loss_scale


def test_the_scale_is_halved_at_each_overflow_and_doubles_after_many_good_updates():
    watch = replace(ScaledLossStats.start(), since_change=jnp.int32(GROWTH_INTERVAL - 2))
    found = follow(watch, [True, True, True, False, False, True])
    assert found == [FIRST, 2 * FIRST, 2 * FIRST, FIRST, FIRST / 2, FIRST / 2]
    # An overflow begins the count anew.
    watch = replace(watch, since_change=jnp.int32(GROWTH_INTERVAL - 1))
    assert follow(watch, [False, True]) == [FIRST / 2, FIRST / 2]


@pytest.mark.parametrize(
    ("dtype", "bears", "tried"),
    [
        ("bfloat16", FIRST, [LEAST]),
        ("float16", FIRST, [FIRST]),
        ("float16", FIRST / 4, [FIRST, FIRST / 2, FIRST / 4]),
        ("float16", 0.0, [FIRST / 2**n for n in range(17)]),
    ],
)
def test_outside_of_a_run_the_scale_falls_until_no_gradient_overflows(dtype, bears, tried):
    scales = []

    def norms(scale: float) -> dict[str, float]:
        scales.append(scale)
        return {"a": 1.0, "b": 2.0 if scale <= bears else float("inf")}

    assert at_largest_scale(norms, dtype) == {"a": 1.0, "b": 2.0 if bears else float("inf")}
    assert scales == tried


def test_a_loss_that_is_no_number_is_not_the_scale_s_fault():
    watch = replace(ScaledLossStats.start(), since_change=jnp.int32(GROWTH_INTERVAL - 1))
    for loss in (jnp.nan, jnp.inf):
        after, _ = watch.after(jnp.float32(loss), jnp.asarray(False))
        assert (float(after.loss_scale), int(after.skipped)) == (FIRST, 1)
        assert int(after.since_change) == GROWTH_INTERVAL - 1


def test_a_batch_without_targets_leaves_the_scale_as_it_is(model, meshes, make_batch):
    mesh, cfg = meshes["one device"], model(dtype="float16")
    step = make_model_step(cfg, OPTIM, 4, mesh)
    state, batch = make_state(cfg, OPTIM, jax.random.key(1), mesh), make_batch()
    empty = put_batch(batch | {"mask": np.zeros_like(batch["mask"])}, mesh)
    for _ in range(2):
        state, metrics = step(state, empty)
        assert (float(metrics["skipped"]), float(scale_of(state))) == (1, FIRST)


def test_the_scale_stays_between_its_bounds():
    start = replace(ScaledLossStats.start(), since_change=jnp.int32(GROWTH_INTERVAL - 1))
    assert follow(replace(start, loss_scale=jnp.float32(LEAST)), [False]) == [LEAST]
    assert follow(replace(start, loss_scale=jnp.float32(MOST)), [True]) == [MOST]


def test_what_float16_would_round_to_zero_arrives_and_what_overflows_is_left_out():
    """A gradient of 2^-26, and after it one of 2, both by way of float16's five and ten bits."""

    def loss(params, batch):
        return jax.lax.reduce_precision(params, exponent_bits=5, mantissa_bits=10) * batch[0]

    optimizer = optax.sgd(1.0)
    step, small = make_train_step(loss, optimizer), jnp.full((1,), 2.0**-26)
    plain, metrics = step(start_state(jnp.float32(0.0), optimizer), small)
    assert float(plain.params) == 0
    assert "loss_scale" not in metrics

    state = start_state(jnp.float32(0.0), optimizer, loss_scaling="dynamic")
    state, metrics = step(state, small)
    assert (-float(state.params), float(metrics["loss_scale"])) == (2.0**-26, FIRST)
    state, metrics = step(state, jnp.full((1,), 2.0))
    assert (float(metrics["skipped"]), -float(state.params)) == (1, 2.0**-26)
    assert float(scale_of(state)) == FIRST / 2


@pytest.mark.slow
def test_a_scaled_step_in_float32_is_the_plain_one(model, meshes, make_batch):
    mesh, cfg, found = meshes["one device"], model(loss_chunk=48), []
    for scaling in ("none", "dynamic"):
        optim = replace(OPTIM, loss_scaling=scaling, accumulation_steps=2)
        step = make_model_step(cfg, optim, 4, mesh)
        state, metrics = step(
            make_state(cfg, optim, jax.random.key(1), mesh), put_batch(make_batch(), mesh)
        )
        assert ("loss_scale" in metrics) == (scaling == "dynamic")
        found.append((state.params, metrics["loss"], metrics["grad_norm"]))
    # A power of two changes no digit, but XLA fuses the two programs in its own ways.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), *found)


def test_a_run_in_float16_learns_and_resumes_bit_for_bit(model, meshes, make_batch, tmp_path):
    mesh, cfg = meshes["one device"], model(dtype="float16", loss_chunk=48)
    optim = replace(OPTIM, accumulation_steps=2)
    step, batch = make_model_step(cfg, optim, 12, mesh), put_batch(make_batch(), mesh)
    state, losses = make_state(cfg, optim, jax.random.key(1), mesh), []
    # So high that the first updates overflow: the scale at the checkpoint is not the first one.
    assert isinstance(state.watch, ScaledLossStats)
    state = replace(state, watch=replace(state.watch, loss_scale=jnp.float32(2.0**24)))
    with Checkpoints(tmp_path / "run", run_metadata={}) as checkpoints:
        for number in range(12):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            if number == 7:
                checkpoints.save(8, state)
    with Checkpoints(tmp_path / "run", run_metadata={}) as checkpoints:
        resumed = checkpoints.restore(abstract_state(cfg, optim, mesh))
    assert int(resumed.watch.skipped) > 0
    assert float(scale_of(resumed)) < 2.0**24
    for _ in range(4):
        resumed, _ = step(resumed, batch)
    jax.tree.map(np.testing.assert_array_equal, state, resumed)
    assert losses[-1] < losses[0] - 0.5


def test_float16_without_a_scale_is_refused(model, meshes):
    with pytest.raises(InputError, match="loss_scaling=dynamic"):
        make_model_step(model(dtype="float16"), OptimConfig(), 4, meshes["one device"])
