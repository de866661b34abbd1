import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import models
from polycom_jax.training.loss import batch_nats, token_nats


def reference(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return -np.take_along_axis(logp, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_token_nats_agree_with_float64(scale, dtype):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(scale * rng.normal(size=(4, 5, 37)), dtype)
    targets = rng.integers(0, 37, (4, 5))
    nats = token_nats(logits, jnp.asarray(targets))
    assert nats.dtype == jnp.float32
    expected = reference(np.asarray(logits, np.float64), targets)
    # The difference from the largest logit, at most 8 scale, is rounded once.
    np.testing.assert_allclose(nats, expected, rtol=1e-6, atol=8 * scale * 2**-23)


def test_a_confident_token_keeps_its_small_loss():
    logits = jnp.array([[20.0, 0.0, 0.0]])
    assert float(token_nats(logits, jnp.array([0]))[0]) == pytest.approx(
        float(np.log1p(2 * np.exp(-20.0))), abs=2**-24
    )


def test_padding_columns_change_nothing_and_get_no_gradient():
    rng = np.random.default_rng(1)
    real = jnp.asarray(rng.normal(size=(6, 30)), jnp.float32)
    padding = jnp.full((6, 10), jnp.finfo(jnp.float32).min)
    targets = jnp.asarray(rng.integers(0, 30, 6))

    def total(logits):
        return token_nats(logits, targets).sum()

    plain, slope = jax.value_and_grad(total)(real)
    padded, padded_slope = jax.value_and_grad(total)(jnp.concatenate([real, padding], 1))
    np.testing.assert_allclose(padded, plain, rtol=1e-6)
    np.testing.assert_allclose(padded_slope[:, :30], slope, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(padded_slope[:, 30:], 0)


def test_only_unmasked_targets_count(model, make_batch, initial):
    cfg, batch = model(), make_batch()
    params = initial("one device").params
    nats, aux = batch_nats(cfg, params, batch)
    logits = models.forward(
        cfg,
        params,
        batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
    )
    expected = reference(np.asarray(logits), batch["targets"])[batch["mask"]].sum()
    assert float(nats) == pytest.approx(expected, rel=1e-5)
    assert aux == {}
    hidden_targets = np.where(batch["mask"], batch["targets"], 0)
    again, _ = batch_nats(cfg, params, batch | {"targets": hidden_targets})
    assert float(again) == float(nats)


@pytest.mark.parametrize("document_mask", [True, False])
def test_document_boundaries_count_iff_the_model_says_so(model, make_batch, initial, document_mask):
    cfg, batch = model(document_mask=document_mask), make_batch()
    params = jax.tree.map(lambda x: x, initial("one device").params)  # its own dicts
    # At initialisation attention hardly matters: make it matter.
    params["layers"][0]["attention"]["w_v"] *= 20
    params["layers"][0]["attention"]["w_o"] *= 20
    whole = batch | {
        "segment_ids": np.ones_like(batch["segment_ids"]),
        "positions": np.broadcast_to(np.arange(8, dtype=np.int32)[None], (16, 8)),
    }
    split, _ = batch_nats(cfg, params, batch)
    joined, _ = batch_nats(cfg, params, whole)
    assert (float(split) != float(joined)) == document_mask
