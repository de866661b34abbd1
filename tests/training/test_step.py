import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from polycom_jax import ACTIVATIONS, InputError, models
from polycom_jax.sharding import Rules
from polycom_jax.training import (
    OptimConfig,
    abstract_state,
    make_eval_step,
    make_model_step,
    make_state,
    put_batch,
)
from polycom_jax.training.batches import batch_sharding
from polycom_jax.training.loss import cross_entropy
from polycom_jax.training.step import split_batch

OPTIM = OptimConfig(
    peak_learning_rate=1e-2, final_learning_rate_fraction=0.5, warmup_steps=2, weight_decay=0.0
)
STEPS = 4


@pytest.fixture(scope="module")
def trained(model, meshes, make_batch):
    """Losses and last metrics of a short run, its last state, and the step that made it."""

    @functools.cache  # compiling is what takes the time
    def run(activation="poly_norm", mesh="one device", accumulation_steps=1):
        wide = {"ffn_width": 64} if activation == "evonorm_s0" else {}  # it has 32 groups
        cfg = model(activation=activation, **wide)
        optim = replace(OPTIM, accumulation_steps=accumulation_steps)
        step = make_model_step(cfg, optim, STEPS, meshes[mesh])
        state = make_state(cfg, optim, jax.random.key(3), meshes[mesh])
        losses, metrics = [], {}
        for seed in range(STEPS):
            state, metrics = step(state, put_batch(make_batch(seed), meshes[mesh]))
            losses.append(float(metrics["loss"]))
        assert step.jitted._cache_size() == 1
        return losses, {name: float(value) for name, value in metrics.items()}, state, step

    return run


def assert_same_run(one, other):
    """Equal but for the order of float32 sums.

    A loss of 4.6 is rounded to 2.4e-7 of itself. Adam turns a gradient's relative error into the
    same relative error of an update of at most 1e-2, save where the gradient is nearly nothing,
    so each step adds some 1e-6 to what weights of 0.1 to 1 are off: 5e-6 after four.
    """
    np.testing.assert_allclose(one[0], other[0], rtol=5e-6)
    for name, value in one[1].items():
        assert value == pytest.approx(other[1][name], rel=5e-5), name


@pytest.mark.parametrize(
    "mesh", [pytest.param("fsdp 8", marks=pytest.mark.exhaustive), "data 2, fsdp 2, tensor 2"]
)
def test_poly_norm_loses_the_same_on_every_mesh(trained, mesh):
    assert_same_run(trained(), trained(mesh=mesh))


def test_a_mesh_of_jax_itself_with_one_axis_trains_and_evaluates(model, make_batch, trained):
    cfg, mesh = model(), jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    state = make_state(cfg, OPTIM, jax.random.key(3), mesh)
    batch = put_batch(make_batch(0), mesh)
    sums = make_eval_step(cfg, mesh)(state.params, batch)
    _, metrics = make_model_step(cfg, OPTIM, STEPS, mesh)(state, batch)
    for loss in (metrics["loss"], sums["nats"] / sums["targets"]):
        np.testing.assert_allclose(loss, trained()[0][0], rtol=5e-6)


@pytest.mark.exhaustive
def test_an_element_wise_one_loses_the_same_with_a_split_hidden_axis(trained):
    split = trained("poly_relu", "data 2, fsdp 2, tensor 2")
    assert_same_run(trained("poly_relu"), split)
    assert abs(split[0][-1] - trained()[0][-1]) > 1e-4


# A gated one, with a mean over its gate's row: among the longer tests. The others: the longest.
@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name == "poly_norm_glu" else pytest.mark.exhaustive
        )
        for name in ACTIVATIONS
    ],
)
def test_every_activation_loses_the_same_on_a_mesh_of_all_axes(trained, activation):
    assert_same_run(trained(activation), trained(activation, "data 2, fsdp 2, tensor 2"))


@pytest.mark.exhaustive
def test_accumulation_over_uneven_masks_changes_nothing(trained):
    whole = trained()
    parts = trained(mesh="data 2, fsdp 2, tensor 2", accumulation_steps=4)
    assert_same_run(whole, parts)
    one, other = (np.asarray(run[2].params["final_norm"]) for run in (whole, parts))
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_the_loss_is_the_mean_over_all_unmasked_targets(model, make_batch, initial, trained):
    cfg, batch = model(), make_batch(0)
    params = initial("one device").params
    where = {name: batch[name] for name in ("segment_ids", "positions")}
    logits = jax.jit(models.forward, static_argnums=0)(cfg, params, batch["tokens"], **where)
    nats = np.asarray(cross_entropy(logits, batch["targets"]), np.float64)
    assert trained()[0][0] == pytest.approx(nats[batch["mask"]].mean(), rel=1e-6)


def test_metrics_are_of_the_update_just_done(trained, make_batch):
    _, metrics, state, _ = trained()
    assert int(state.step) == STEPS
    assert metrics["tokens"] == make_batch(STEPS - 1)["mask"].sum()
    assert metrics["learning_rate"] == pytest.approx(5e-3)  # the last: half of the peak
    assert metrics["grad_norm"] > 0
    assert set(metrics) == {
        *("loss", "grad_norm", "learning_rate", "param_norm", "tokens"),
        *("skipped", "spike"),
    }


def test_padding_rows_stay_zero(trained):
    for name in ("embed", "unembed"):
        table = np.asarray(trained()[2].params[name])
        assert not table[100:].any()
        assert table[:100].any(axis=1).all()


def test_the_state_is_donated_and_a_batch_can_be_learned(model, meshes, make_batch, trained):
    mesh, step = meshes["one device"], trained()[3]
    state = first = make_state(model(), OPTIM, jax.random.key(1), mesh)
    batch = put_batch(make_batch(), mesh)
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("experts", [0, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_a_batch_without_targets_has_no_loss_and_moves_nothing(model, meshes, make_batch, experts):
    mesh, cfg = meshes["one device"], model(moe=models.MoEConfig(num_experts=experts, top_k=2))
    optim = replace(OPTIM, weight_decay=0.1)
    step, state = make_model_step(cfg, optim, 4, mesh), None
    for masked in (False, True):
        state = state or make_state(cfg, optim, jax.random.key(1), mesh)
        before = jax.tree.map(np.array, (state.params, state.opt_state))
        batch = make_batch() | ({"mask": np.zeros((16, 8), bool)} if masked else {})
        state, metrics = step(state, put_batch(batch, mesh))
    assert (float(metrics["tokens"]), np.isnan(metrics.pop("loss"))) == (0.0, True)
    assert (float(metrics["skipped"]), int(state.watch.skipped), int(state.step)) == (1, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state))
    assert all(np.isfinite(value).all() for value in metrics.values())


@pytest.mark.parametrize("name", ["tokens", "targets"])
def test_ids_outside_the_vocabulary_skip_the_step(meshes, make_batch, trained, model, name):
    mesh, step = meshes["one device"], trained()[3]
    batch = make_batch()
    batch[name][-1, np.flatnonzero(batch["mask"][-1])[0]] = -100
    state, metrics = step(
        make_state(model(), OPTIM, jax.random.key(1), mesh), put_batch(batch, mesh)
    )
    assert np.isnan(metrics["loss"])
    assert metrics["skipped"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.exhaustive
def test_accumulation_changes_nothing_of_what_a_mixture_reports(model, meshes, make_batch):
    cfg, found = model(moe=models.MoEConfig(num_experts=4, top_k=2)), []
    for parts in (1, 4):
        optim = replace(OPTIM, accumulation_steps=parts)
        mesh = meshes["one device"]
        step, state = (
            make_model_step(cfg, optim, 4, mesh),
            make_state(cfg, optim, jax.random.key(1), mesh),
        )
        metrics = step(state, put_batch(make_batch(), mesh))[1]
        found.append({k: v for k, v in metrics.items() if k != "grad_norm"})
    assert "expert_load" in found[0]
    assert "layers" not in found[0]
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=2e-6, err_msg=name)


def test_what_a_model_adds_to_its_loss_is_minimised_and_reported(
    monkeypatch, model, meshes, make_batch
):
    """A mixture of experts will: here the model asks for a smaller final norm."""
    plain = models.hidden

    def hidden(cfg, params, tokens, **options):
        x, _, cache = plain(cfg, params, tokens, **options)
        penalty = 100.0 * (params["final_norm"] ** 2).mean()
        return x, {"auxiliary_loss": penalty, "share": penalty / 50}, cache

    monkeypatch.setattr(models, "hidden", hidden)
    cfg, mesh = model(), meshes["one device"]
    optim = OptimConfig(peak_learning_rate=1e-2, accumulation_steps=2)
    step = make_model_step(cfg, optim, 10, mesh)
    state, metrics = step(
        make_state(cfg, optim, jax.random.key(0), mesh), put_batch(make_batch(), mesh)
    )
    assert float(metrics["auxiliary_loss"]) == pytest.approx(100)
    assert float(metrics["share"]) == pytest.approx(2)
    assert float(metrics["loss"]) == pytest.approx(np.log(100), rel=0.05)
    assert (np.asarray(state.params["final_norm"]) < 0.995).all()


def test_micro_batches_take_their_rows_from_every_device(meshes):
    mesh = meshes["data 8"]
    batch = put_batch({"tokens": np.arange(32, dtype=np.int32)[:, None]}, mesh)
    with jax.set_mesh(mesh):
        micro = jax.jit(lambda b: split_batch(b, 2, batch_sharding(mesh, Rules())))(batch)["tokens"]
    rows = np.asarray(micro)[:, :, 0]
    np.testing.assert_array_equal(np.sort(rows.ravel()), np.arange(32))
    np.testing.assert_array_equal(rows[0], np.arange(32).reshape(8, 2, 2)[:, 0].ravel())
    for shard in micro.addressable_shards:
        here = next(s for s in batch["tokens"].addressable_shards if s.device == shard.device)
        assert set(np.ravel(shard.data)) == set(np.ravel(here.data))


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_sizes(meshes, make_batch):
    with pytest.raises(InputError, match=r"batch_size=12 .* 8 devices; nearest: 8 or 16"):
        put_batch(make_batch(rows=12), meshes["data 8"])


def test_an_empty_batch_is_refused(meshes, make_batch):
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        put_batch(make_batch(rows=0), meshes["data 8"])


def test_rows_that_are_not_those_of_this_hosts_devices_are_refused(meshes, make_batch):
    with pytest.raises(InputError, match="hold 16 of batch_size=16 rows, and 8 were given"):
        put_batch(make_batch(rows=8), meshes["data 8"], batch_size=16)


def test_a_batch_too_small_for_its_accumulation_is_refused(model, meshes, make_batch):
    cfg, mesh = model(), meshes["data 8"]
    optim = OptimConfig(accumulation_steps=4)
    step = make_model_step(cfg, optim, 10, mesh)
    with pytest.raises(InputError, match=r"accumulation_steps=4 over 8 devices; nearest: 32"):
        step.lower(abstract_state(cfg, optim, mesh), make_batch())
