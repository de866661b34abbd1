"""The z-loss of the softmax: its value, its derivatives, and what a step reports of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from polycom_jax import InputError, models
from polycom_jax.sharding import Rules
from polycom_jax.training import (
    OptimConfig,
    abstract_state,
    make_model_step,
    make_state,
    model_loss,
    put_batch,
)
from polycom_jax.training.loss import _hidden_sums, hidden_nats

WEIGHT = 0.25


def drawn(make_batch):
    """Final hidden states of 16 rows of 8 tokens, an unembedding of 28 padding rows, a batch."""
    keys = jax.random.split(jax.random.key(0))
    x, table = jax.random.normal(keys[0], (16, 8, 16)), jax.random.normal(keys[1], (128, 16))
    return x, table, make_batch()


def plain(table, x, batch):
    """The same from `jax.nn` alone: nats and the z-loss apart."""
    logits = jnp.einsum("btd,vd->btv", x, table[:100], precision="highest")
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    mask = jnp.asarray(batch["mask"])
    nats, z = log_sum - chosen, WEIGHT * log_sum**2
    return jnp.sum(jnp.where(mask, nats, 0)), jnp.sum(jnp.where(mask, z, 0))


def sums(cfg, batch, rules: Rules | None = None):
    def of(table: Any, x: Any) -> Any:
        return _hidden_sums(cfg, {"unembed": table}, x, batch, rules, WEIGHT)

    return of


@pytest.mark.parametrize("chunk", [None, 43])
def test_it_and_its_gradient_are_those_of_the_formula(model, make_batch, chunk):
    x, table, batch = drawn(make_batch)
    cfg = model(tie_embeddings=False, loss_chunk=chunk)
    nats, z = plain(table, x, batch)
    of = jax.jit(jax.value_and_grad(sums(cfg, batch), (0, 1), has_aux=True))
    (total, part), grads = of(table, x)
    np.testing.assert_allclose([total, part], [nats + z, z], rtol=20 * 2**-24)
    wanted = jax.grad(lambda table, x: sum(plain(table, x, batch)), (0, 1))(table, x)
    for got, want in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2**-18 * float(jnp.abs(want).max()))
    assert float(hidden_nats(cfg, {"unembed": table}, x, batch)) == pytest.approx(float(nats))


@pytest.mark.parametrize("weight", [0.0, WEIGHT])
def test_gradients_in_float16_are_those_of_the_formula(model, make_batch, weight):
    """Slopes are multiplied by a power of two on the way, and what they make is divided by it."""
    x, table, batch = drawn(make_batch)
    x, table = x.astype(jnp.float16), table.astype(jnp.float16).astype(jnp.float32)
    cfg = model(tie_embeddings=False, loss_chunk=43, dtype="float16")

    def total(table: Any, x: Any) -> Any:
        return _hidden_sums(cfg, {"unembed": table}, x, batch, None, weight)[0]

    def formula(table: Any, x: Any) -> Any:
        nats, z = plain(table, x, batch)
        return nats + weight / WEIGHT * z

    got = jax.jit(jax.grad(total, (0, 1)))(table, x)
    wanted = jax.grad(formula, (0, 1))(table, x.astype(jnp.float32))
    for mine, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, want, atol=4 * 2**-11 * float(jnp.abs(want).max()))


def test_chunks_have_its_second_derivatives(model, make_batch):
    x, table, batch = drawn(make_batch)
    cfg = model(tie_embeddings=False, loss_chunk=43)

    def product(of) -> Any:
        slope = jax.grad(of, (0, 1))
        return jax.jit(lambda *at: jax.jvp(slope, at, (jnp.cos(table), jnp.sin(x)))[1])(table, x)

    got = product(lambda table, x: sums(cfg, batch)(table, x)[0])
    for mine, want in zip(got, product(lambda table, x: sum(plain(table, x, batch))), strict=True):
        np.testing.assert_allclose(mine, want, atol=2**-16 * float(jnp.abs(want).max()))


def test_what_is_reported_of_it_has_no_derivative(model, make_batch):
    x, table, batch = drawn(make_batch)
    for chunk in (None, 43):
        of = sums(model(tie_embeddings=False, loss_chunk=chunk), batch)
        assert not np.any(jax.grad(lambda at, of=of: of(at, x)[1])(table))


@pytest.mark.parametrize("chunk", [pytest.param(None, marks=pytest.mark.slow), 5])
def test_a_split_vocabulary_changes_nothing(model, meshes, make_batch, chunk):
    x, table, batch = drawn(make_batch)
    cfg, mesh = model(tie_embeddings=False, loss_chunk=chunk), meshes["data 2, fsdp 2, tensor 2"]
    wanted = jax.jit(jax.value_and_grad(sums(cfg, batch), (0, 1), has_aux=True))(table, x)
    with jax.set_mesh(mesh):
        placed = put_batch(batch, mesh)
        split = NamedSharding(mesh, Rules().partition(("vocab", "embed")))
        on = jax.device_put(table, split)
        rows = jax.device_put(x, placed["mask"].sharding)
        of = jax.jit(jax.value_and_grad(sums(cfg, placed, Rules()), (0, 1), has_aux=True))
        found = of(on, rows)
    for got, want in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(got, want, atol=2**-18 * float(jnp.abs(want).max()))


def test_the_reported_loss_is_without_it_and_both_are_means_over_targets(
    monkeypatch, model, make_batch
):
    x, table, batch = drawn(make_batch)
    monkeypatch.setattr(models, "hidden", lambda *args, **options: (x, {}, None))
    loss = model_loss(model(tie_embeddings=False, loss_chunk=43), z_loss=WEIGHT)
    targets = loss.normalizer(batch)
    minimised, metrics = jax.jit(loss.part)({"unembed": table}, batch, targets)
    nats, z = (float(total) / batch["mask"].sum() for total in plain(table, x, batch))
    assert float(metrics["loss"]) == pytest.approx(nats, rel=2**-19)
    assert float(metrics["z_loss"]) == pytest.approx(z, rel=2**-19)
    assert float(minimised) == pytest.approx(nats + z, rel=2**-19)


def test_the_step_is_given_its_coefficient(model, meshes, make_batch):
    mesh, found = meshes["one device"], []
    for z_loss in (0.0, WEIGHT):
        optim = OptimConfig(z_loss=z_loss)
        step = make_model_step(model(), optim, 10, mesh)
        with jax.set_mesh(mesh):
            state = abstract_state(model(), optim, mesh)
            found.append(jax.eval_shape(step.jitted, state, make_batch())[1])
    assert found[1].keys() - found[0].keys() == {"z_loss"}


def test_slopes_of_tokens_that_float16_holds_no_probability_of_are_not_lost(model, make_batch):
    batch = {"mask": jnp.ones((1, 4), bool), "targets": jnp.zeros((1, 4), jnp.int32)}
    cfg = model(tie_embeddings=False, loss_chunk=4, dtype="float16")
    x = jnp.zeros((1, 4, 16), jnp.float16).at[:, :, 0].set(1)
    table = jnp.zeros((128, 16)).at[0, 0].set(18)  # others: e^-18, a quarter of its least number

    def total(table: Any) -> Any:
        return _hidden_sums(cfg, {"unembed": table}, x, batch, None, 0.0)[0]

    slope = jax.jit(jax.grad(total))(table)[:100, 0]
    other = np.exp(-18.0) / (1 + 99 * np.exp(-18.0))
    np.testing.assert_allclose(slope[1:], 4 * other, rtol=2**-10)
    np.testing.assert_allclose(slope[0], -4 * 99 * other, rtol=2**-10)


@pytest.mark.slow
def test_a_step_minimises_it_and_reports_it_beside_the_loss(model, meshes, make_batch):
    mesh, cfg = meshes["one device"], model(loss_chunk=43)
    batch = put_batch(make_batch(), mesh)

    def first(**more) -> dict[str, Any]:
        optim = OptimConfig(warmup_steps=1, **more)
        state = make_state(cfg, optim, jax.random.key(3), mesh)
        return make_model_step(cfg, optim, 10, mesh)(state, batch)[1]

    without, one = first(), first(z_loss=1.0)
    parts = first(z_loss=1.0, accumulation_steps=2)
    assert "z_loss" not in without
    assert float(one["loss"]) == pytest.approx(float(without["loss"]), rel=2**-20)
    assert float(one["z_loss"]) == pytest.approx(np.log(100) ** 2, rel=0.2)
    assert float(one["grad_norm"]) > 1.1 * float(without["grad_norm"])
    for name in ("loss", "z_loss", "grad_norm"):
        assert float(parts[name]) == pytest.approx(float(one[name]), rel=2**-19)


@pytest.mark.slow
def test_a_mixture_reports_it_beside_its_routers_losses(make_batch):
    cfg = models.preset("moe-tiny", num_layers=1, vocab_size=100, context_length=8)
    params, batch = models.init(cfg, jax.random.key(0)), jax.tree.map(jnp.asarray, make_batch())
    for z_loss in (0.0, WEIGHT):
        loss = model_loss(cfg, z_loss=z_loss)
        minimised, metrics = jax.jit(loss.part)(params, batch, loss.normalizer(batch))
        parts = metrics["loss"] + metrics["auxiliary_loss"] + metrics.get("z_loss", 0.0)
        assert float(minimised) == pytest.approx(float(parts), rel=2**-20)


@pytest.mark.parametrize("value", [-1e-4, float("inf"), float("nan")])
def test_a_coefficient_that_is_none_is_refused(value):
    with pytest.raises(InputError, match=r"z_loss=.* must be at least 0 and finite"):
        OptimConfig(z_loss=value)
