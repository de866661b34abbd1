"""PPL-p% sparsity against NumPy in float64, and against what the model's own loss says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError, analysis, models
from polycom_jax import params as pm
from polycom_jax.analysis import sparsity
from polycom_jax.training.loss import batch_nats

SIZES = {
    "num_layers": 2, "embed_dim": 16, "vocab_size": 40, "context_length": 12, "gated_width": 16,
    "num_heads": 2, "num_kv_heads": 2, "head_dim": 8,
}  # fmt: skip


def model(activation: str, preset: str = "tiny"):
    """A config and weights that NumPy draws: nothing is compiled for them."""
    cfg, rng = models.preset(preset, activation=activation, **SIZES), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype),
        pm.abstract(models.specs(cfg)),
    )
    return cfg, params


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "mask": np.arange(24).reshape(2, 12) < 21,
        "segment_ids": np.ones((2, 12), np.int32),
        "positions": np.arange(12, dtype=np.int32)[None].repeat(2, 0),
    }


class Plain:
    """The model whose attention adds nothing, in float64: feed-forward layers alone."""

    def __init__(self, cfg, params, batch):
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        self.eps, self.vocab = cfg.norm_eps, cfg.vocab_size
        self.keep = batch["mask"].reshape(-1)
        self.tokens, self.targets = (batch[k].reshape(-1) for k in ("tokens", "targets"))

    def norm(self, x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + self.eps) * scale

    def run(self, thresholds):
        """Mean loss, active shares and errors, a layer each; idle neurons add nothing."""
        x, shares, errors = self.params["embed"][self.tokens], [], []
        group = self.params["layers"][0]["ffn"]
        for i, threshold in enumerate(thresholds):
            hidden = np.maximum(self.norm(x, group["norm"][i]) @ group["w_up"][i], 0)
            down = group["w_down"][i]
            active = np.abs(hidden) * np.sqrt(np.sum(down**2, 1)) > threshold
            dropped = np.linalg.norm(np.where(active, 0, hidden) @ down, axis=1)
            errors.append(np.mean((dropped / np.linalg.norm(hidden @ down, axis=1))[self.keep]))
            shares.append(active[self.keep].mean())
            x = x + np.where(active, hidden, 0) @ down
        table = self.params["embed"][: self.vocab]
        logits = self.norm(x, self.params["final_norm"]) @ table.T
        log_sum = np.log(np.sum(np.exp(logits), axis=1))
        nats = log_sum - logits[np.arange(len(logits)), self.targets]
        return nats[self.keep].mean(), shares, errors


def test_idle_neurons_cost_what_numpy_says_and_no_more_than_allowed(batch):
    cfg, params = model("relu")
    params["layers"][0]["attention"]["w_o"] *= 0
    plain = Plain(cfg, params, batch)
    whole, nonzero, _ = plain.run([0.0, 0.0])
    shares = []
    for rise in (0.01, 0.1):
        found = analysis.perplexity_sparsity(cfg, params, batch, rise)
        nats, active, errors = plain.run(found.thresholds)
        np.testing.assert_allclose(found.perplexity_rise, np.expm1(nats - whole), atol=1e-5)
        np.testing.assert_allclose(found.active_share, active, atol=1e-9)
        assert found.perplexity_rise <= rise
        # The first layer sees what it sees in the whole model, so CETT is its error there, up to
        # the line between two thresholds.
        assert errors[0] == pytest.approx(found.cett, abs=0.05)
        assert np.all(found.active_share <= nonzero)
        shares.append(found.active_share.mean())
    assert shares[1] < shares[0] < 1


def test_tokens_without_a_target_change_no_threshold_and_no_error(batch):
    cfg, params = model("relu")
    tokens = jnp.where(batch["mask"], batch["tokens"], 39)
    assert jnp.any(batch["tokens"] != tokens)
    keep = jnp.array(batch["mask"].reshape(-1))
    found = [
        sparsity._whole(cfg, params, own, keep) for own in (batch, {**batch, "tokens": tokens})
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), *found)


def test_errors_are_those_of_numpy():
    rng = np.random.default_rng(1)
    hidden, down = rng.standard_normal((5, 7)), rng.standard_normal((7, 3))
    hidden[2] = 0  # its output is 0, and nothing of it can be lost
    keep = np.array([True, True, True, False, True])
    sizes = np.abs(hidden) * np.linalg.norm(down, axis=1)
    thresholds = np.array([0.0, 0.5, 1.0, 100.0])
    whole = np.linalg.norm(hidden @ down, axis=1)
    expected = []
    for threshold in thresholds:
        dropped = np.linalg.norm(np.where(sizes <= threshold, hidden, 0) @ down, axis=1)
        expected.append(np.mean((dropped / np.where(whole > 0, whole, 1))[keep]))
    single = jnp.float32(hidden), jnp.float32(down)
    found = sparsity.dropped_errors(*single, jnp.float32(thresholds), jnp.array(keep))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == 0
    assert found[-1] == pytest.approx(3 / 4)
    np.testing.assert_allclose(sparsity.neuron_sizes(*single), sizes, rtol=1e-6)


def test_the_largest_threshold_of_an_error_is_taken():
    thresholds, errors = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.3, 0.2, 0.2, 1.0])
    assert sparsity.threshold_at(0.0, thresholds, errors) == 0
    assert sparsity.threshold_at(0.1, thresholds, errors) == pytest.approx(0.5)
    assert sparsity.threshold_at(0.2, thresholds, errors) == 3
    assert sparsity.threshold_at(0.6, thresholds, errors) == pytest.approx(3.5)
    assert sparsity.threshold_at(1.0, thresholds, errors) == np.inf


def test_where_no_neuron_matters_none_is_active(batch):
    cfg, params = model("relu")
    params["layers"][0]["attention"]["w_o"] *= 0
    params["layers"][0]["ffn"]["w_down"] *= 1e-6
    found = analysis.perplexity_sparsity(cfg, params, batch)
    assert found.cett == 1
    np.testing.assert_array_equal(found.active_share, 0)


@pytest.mark.parametrize(
    "activation",
    ["relu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swiglu", "poly_norm"))],
)
def test_the_whole_model_has_its_own_loss(activation: str, batch):
    cfg, params = model(activation)
    nats, curves = sparsity._whole(cfg, params, batch, jnp.array(batch["mask"].reshape(-1)))
    total = jax.jit(batch_nats, static_argnums=0)(cfg, params, batch)[0]
    assert nats == pytest.approx(float(total) / 21, rel=1e-5)
    for thresholds, errors in curves:
        assert errors[0] == 0
        assert errors[-1] == pytest.approx(1)
        assert np.all(np.diff(thresholds) >= 0)


def test_what_has_no_such_sparsity_is_told(batch):
    cfg, params = model("relu")
    with pytest.raises(InputError, match="rise=0 must be positive"):
        analysis.perplexity_sparsity(cfg, params, batch, 0)
    with pytest.raises(InputError, match="No token of the batch has a target"):
        analysis.perplexity_sparsity(cfg, params, {**batch, "mask": jnp.zeros((2, 12), bool)})
    mixture = models.preset("moe-tiny")
    with pytest.raises(InputError, match="defined for dense models"):
        analysis.perplexity_sparsity(mixture, params, batch)
