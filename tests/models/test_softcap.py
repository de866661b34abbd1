"""The soft cap of the logits, wherever logits are computed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import TINY

from polycom_jax import InputError, models
from polycom_jax.models.decode import advance, prefill
from polycom_jax.training.loss import _hidden_sums, batch_nats, hidden_nats

CAP = 2.0
PLAIN = replace(TINY, vocab_size=50, context_length=8)
CAPPED = replace(PLAIN, logit_softcap=CAP)


def inputs():
    """Hidden states, an unembedding whose logits go far beyond the cap, and a batch."""
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (3, 8, PLAIN.embed_dim))
    rows = jnp.arange(128)[:, None] < PLAIN.vocab_size
    table = jnp.where(rows, jax.random.normal(keys[1], (128, PLAIN.embed_dim)), 0)
    ids = jax.random.randint(keys[2], (3, 8), 0, PLAIN.vocab_size, jnp.int32)
    mask = jnp.arange(24).reshape(3, 8) % 5 > 0
    return x, {"unembed": table, "embed": table}, {"tokens": ids, "targets": ids, "mask": mask}


def formula(params, x, batch, z_loss=0.0):
    logits = jnp.einsum("btd,vd->btv", x, params["unembed"][:50], precision="highest")
    logits = CAP * jnp.tanh(logits / CAP)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)
    z = z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return jnp.sum(jnp.where(batch["mask"], nats[..., 0] + z, 0))


def test_logits_are_bounded_and_padding_is_not():
    x, params, _ = inputs()
    raw = np.asarray(models.unembed(PLAIN, params, x), np.float64)
    assert np.abs(raw).max() > 2 * CAP
    got = models.unembed(CAPPED, params, x)
    np.testing.assert_allclose(got, CAP * np.tanh(raw / CAP), atol=2**-20)
    padded = models.unembed(CAPPED, params, x, padded=True)
    np.testing.assert_array_equal(padded[..., :50], got)
    assert float(padded[..., 50:].max()) == np.finfo(np.float32).min


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_loss_and_its_gradients_are_those_of_the_formula(chunk):
    x, params, batch = inputs()
    cfg = replace(CAPPED, loss_chunk=chunk, tie_embeddings=False)
    of = jax.jit(jax.value_and_grad(lambda p, x: hidden_nats(cfg, p, x, batch), (0, 1)))
    got, (by_table, by_x) = of(params, x)
    want, (table_too, x_too) = jax.value_and_grad(formula, (0, 1))(params, x, batch)
    assert float(got) == pytest.approx(float(want), rel=2**-20)
    for one, two in ((by_table["unembed"], table_too["unembed"]), (by_x, x_too)):
        np.testing.assert_allclose(one, two, atol=2**-18 * float(jnp.abs(two).max()))


def test_chunks_have_the_second_derivatives_of_a_capped_z_loss():
    x, params, batch = inputs()
    cfg = replace(CAPPED, loss_chunk=7, tie_embeddings=False)

    def product(of):
        return jax.jit(lambda x: jax.jvp(jax.grad(of), (x,), (jnp.cos(x),))[1])(x)

    got = product(lambda x: _hidden_sums(cfg, params, x, batch, None, 0.1)[0])
    want = product(lambda x: formula(params, x, batch, 0.1))
    np.testing.assert_allclose(got, want, atol=2**-16 * float(jnp.abs(want).max()))


@pytest.mark.slow
def test_decoding_and_the_loss_see_the_logits_of_forward():
    cfg = replace(CAPPED, num_layers=1, document_mask=False)
    params = dict(models.init(cfg, jax.random.key(0)))
    name = "embed" if cfg.tie_embeddings else "unembed"
    params[name] = params[name] * 20
    _, _, batch = inputs()
    whole = models.forward(cfg, params, batch["tokens"])
    assert float(jnp.abs(whole).max()) > 0.9 * CAP
    logits, cache = prefill(cfg, params, batch["tokens"][:, :7], room=8)
    np.testing.assert_allclose(logits, whole[:, 6], atol=1e-5)
    logits, _ = advance(cfg, params, batch["tokens"][:, 7], cache)
    np.testing.assert_allclose(logits, whole[:, 7], atol=1e-5)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(whole), batch["targets"][..., None], -1)
    want = float(jnp.sum(jnp.where(batch["mask"], nats[..., 0], 0)))
    assert float(batch_nats(cfg, params, batch)[0]) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, -30.0, float("inf")])
def test_a_cap_that_is_none_is_refused(value):
    with pytest.raises(InputError, match=r"logit_softcap=.* must be positive and finite"):
        replace(PLAIN, logit_softcap=value)
