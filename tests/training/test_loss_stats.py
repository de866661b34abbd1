"""Steps whose loss or gradient is no number, and losses that stand out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax.training import OptimConfig, make_model_step, make_state, model_step, put_batch
from polycom_jax.training.loss_stats import HORIZON, SETTLED, SPIKE_DEVIATIONS, LossStats

OPTIM = OptimConfig(peak_learning_rate=1e-2, warmup_steps=4)


def follow(losses: list[float]) -> tuple[LossStats, list[bool]]:
    after, watch, spikes = jax.jit(LossStats.after), LossStats.start(), []
    for loss in losses:
        watch, spike = after(watch, jnp.float32(loss), jnp.isfinite(jnp.float32(loss)))
        spikes.append(bool(spike))
    return watch, spikes


def test_mean_and_variance_are_those_of_all_losses_at_first():
    losses = np.random.default_rng(0).normal(3, 0.1, HORIZON)
    watch, spikes = follow(losses.tolist())
    assert int(watch.seen) == HORIZON
    np.testing.assert_allclose(watch.mean, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(watch.variance, losses.var(), rtol=1e-4)
    assert not any(spikes)


def test_later_losses_outweigh_those_long_ago():
    watch, _ = follow([5.0] * HORIZON + [1.0] * 3 * HORIZON)
    assert 1 < float(watch.mean) < 1 + 4 * 1.1 * np.exp(-3)


def test_a_loss_far_above_the_others_is_a_spike_and_one_far_below_is_none():
    calm = np.random.default_rng(1).normal(3, 0.1, 3 * SETTLED).tolist()
    far = (SPIKE_DEVIATIONS + 2) * 0.1
    _, spikes = follow([*calm, 3 + far, 3.0, 3 - far])
    assert spikes == [False] * len(calm) + [True, False, False]


def test_nothing_is_a_spike_before_losses_have_settled():
    assert not any(follow([3.0] * (SETTLED - 1) + [100.0])[1])
    assert follow([3.0] * SETTLED + [100.0])[1][-1]


def test_losses_that_are_no_numbers_are_counted_and_leave_the_mean_alone():
    watch, spikes = follow([3.0, float("nan"), 3.0, float("inf"), float("nan")])
    assert (int(watch.skipped), int(watch.in_a_row), int(watch.seen)) == (3, 2, 2)
    assert float(watch.mean) == 3
    assert not any(spikes)


def test_a_loss_of_64_bits_leaves_the_state_s_dtypes_as_they_are():
    start = LossStats.start()
    with jax.enable_x64(True):
        after, _ = LossStats.after(start, jnp.float64(3.0), jnp.asarray(True))
    assert [leaf.dtype for leaf in vars(after).values()] == [x.dtype for x in vars(start).values()]


@pytest.mark.parametrize("what", [pytest.param("loss", marks=pytest.mark.exhaustive), "gradient"])
def test_a_step_without_a_finite_loss_or_gradient_changes_nothing(
    monkeypatch, model, meshes, make_batch, what
):
    honest = model_step.batch_nats

    def broken(cfg, params, batch, *rest):
        nats, aux = honest(cfg, params, batch, *rest)
        bad = batch["tokens"][0, 0] == 0
        if what == "loss":
            return jnp.where(bad, jnp.nan, nats), aux
        w = params["final_norm"][0]
        nothing = 1e4 * (w - jax.lax.stop_gradient(w))  # with a slope
        return nats + jnp.where(bad, 3e38, 0.0) * nothing, aux

    monkeypatch.setattr(model_step, "batch_nats", broken)
    mesh = meshes["data 2, fsdp 2, tensor 2"]
    update = make_model_step(model(), OPTIM, 10, mesh)
    batch = make_batch()
    batch["tokens"][0, 0] = 1
    bad = batch | {"tokens": batch["tokens"].copy()}
    bad["tokens"][0, 0] = 0

    state, plain = make_state(model(), OPTIM, jax.random.key(0), mesh), []
    for rows in (batch, bad, bad, batch):
        before = jax.tree.map(np.asarray, (state.params, state.opt_state))
        state, metrics = update(state, put_batch(rows, mesh))
        plain.append({name: float(value) for name, value in metrics.items()})
        if rows is bad:
            jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state))
    assert [line["skipped"] for line in plain] == [0, 1, 1, 0]
    assert int(state.step) == 4
    assert (int(state.watch.skipped), int(state.watch.in_a_row)) == (2, 0)
    # The schedule waits for updates: the second one made has the second rate.
    rates = [line["learning_rate"] for line in plain]
    assert rates == pytest.approx([2.5e-3, 5e-3, 5e-3, 5e-3])
