"""The walk through a model, its weights and its gradients agree with the model itself."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import analysis, models
from polycom_jax import params as pm
from polycom_jax.models.layers import rms_norm
from polycom_jax.models.moe import moe
from polycom_jax.training.loss import batch_nats

SIZES = {"num_layers": 2, "embed_dim": 16, "vocab_size": 40, "context_length": 12}


def model(preset: str, activation: str):
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
    segments = np.where(np.arange(12) < 5, 1, 2)[None].repeat(2, 0).astype(np.int32)
    positions = np.where(np.arange(12) < 5, np.arange(12), np.arange(12) - 5)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "mask": np.ones((2, 12), bool),
        "segment_ids": segments,
        "positions": positions[None].repeat(2, 0).astype(np.int32),
    }


@pytest.mark.parametrize(
    ("preset", "activation"),
    [
        ("tiny", "poly_norm"),
        pytest.param("tiny", "swiglu", marks=pytest.mark.slow),
        pytest.param("moe-tiny", "poly_norm", marks=pytest.mark.slow),
    ],
)
def test_the_last_state_is_the_models(preset, activation, batch):
    cfg, params = model(preset, activation)
    views = list(analysis.walk(cfg, params, batch))
    assert [view.index for view in views] == [0, 1]
    np.testing.assert_array_equal(views[0].after, views[1].before)
    documents = {name: batch[name] for name in ("positions", "segment_ids")}
    run = jax.jit(models.hidden, static_argnums=0)
    wanted, _, _ = run(cfg, params, batch["tokens"], **documents)
    got = rms_norm(views[-1].after, params["final_norm"], cfg.norm_eps)
    # The same float32 program in pieces; numbers of about 1.
    np.testing.assert_allclose(got, wanted.reshape(got.shape), atol=5e-5)
    rows = 24 * (cfg.moe.top_k if cfg.is_moe else 1)
    for view in views:
        assert len(view.inputs) == 1 + cfg.activation_fn.gated
        assert view.inputs[0].shape == view.hidden.shape == (rows, cfg.hidden_width)
        hidden = cfg.activation_fn.apply(view.activation, *view.inputs)
        np.testing.assert_allclose(view.hidden, hidden, rtol=1e-4, atol=1e-4)
    check_queries_and_keys(cfg, params, views[0])


def check_queries_and_keys(cfg, params, view):
    """They are products, in float64, that RoPE turns: not at position 0, and to no other length."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params["layers"][0])
    own = own["attention"]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + cfg.norm_eps) * scale

    y = norm(np.asarray(view.before, np.float64).reshape(2, 12, 16), own["norm"])
    for got, letter in ((view.queries, "q"), (view.keys, "k")):
        wanted = y @ own[f"w_{letter}"].reshape(16, -1)
        if cfg.qk_norm == "full":
            wanted = norm(wanted, own[f"{letter}_norm"])
        wanted = wanted.reshape(got.shape)
        np.testing.assert_allclose(got[:, [0, 5]], wanted[:, [0, 5]], rtol=1e-4, atol=1e-4)
        lengths = [np.linalg.norm(each, axis=-1) for each in (got, wanted)]
        np.testing.assert_allclose(*lengths, rtol=1e-4)


@pytest.mark.slow
def test_expert_rows_are_those_that_the_mixture_adds_up(batch):
    """The mixture's output, put together again from the rows that the walk hands out."""
    cfg, params = model("moe-tiny", "poly_norm")
    own = jax.tree.map(lambda leaf: leaf[0], params["layers"][0]["moe"])
    x = jax.random.normal(jax.random.key(1), (2, 12, 16))
    from polycom_jax.analysis.walk import _expert_inputs
    from polycom_jax.models.moe import route

    _, hidden = _expert_inputs(cfg, own, x)
    y = rms_norm(x, own["norm"], cfg.norm_eps).reshape(24, 16)
    routing = route(cfg, own["router"], y)
    rows = hidden.reshape(24, cfg.moe.top_k, -1)
    down = own["w_down"][routing.chosen]
    wanted = jnp.einsum("nk,nkf,nkfd->nd", routing.weights, rows, down)
    np.testing.assert_allclose(
        moe(cfg, own, x, None)[0].reshape(24, 16), wanted, atol=2e-5 * float(jnp.abs(wanted).max())
    )


@pytest.mark.parametrize("preset", ["tiny", "moe-tiny"])
def test_weight_matrices_are_all_of_them_as_they_are_multiplied(preset):
    cfg, params = model(preset, "swiglu")
    found = analysis.weight_matrices(cfg, params)
    heads = cfg.num_heads * cfg.head_dim
    assert found["attention/w_q"].shape == (2, 16, heads)
    assert found["attention/w_o"].shape == (2, heads, 16)
    assert found["embed"].shape == (1, 40, 16)  # no padding
    small = {"norm", "q_norm", "k_norm", "activation"}
    part = "moe" if cfg.is_moe else "ffn"
    layer = params["layers"][0]
    wanted = {f"{p}/{n}" for p in ("attention", part) for n in layer[p] if n not in small}
    assert set(found) == wanted | {"embed"}
    one = np.asarray(layer["attention"]["w_o"][1])
    x = np.random.default_rng(0).standard_normal((3, *one.shape[:2]))
    np.testing.assert_allclose(
        x.reshape(3, -1) @ found["attention/w_o"][1], np.einsum("nhc,hcd->nd", x, one), atol=1e-5
    )


@pytest.mark.slow
def test_gradient_norms_are_those_of_single_layers(batch):
    cfg, params = model("tiny", "poly_norm")
    batch = {**batch, "mask": np.arange(24).reshape(2, 12) < 17}
    found = analysis.gradient_norms(cfg, params, batch)
    grads = jax.jit(jax.grad(lambda p: batch_nats(cfg, p, batch)[0] / 17))(params)
    w_up = np.asarray(grads["layers"][0]["ffn"]["w_up"])
    wanted = [np.linalg.norm(w_up[i]) for i in range(2)]
    np.testing.assert_allclose(found["layers/ffn/w_up"], wanted, rtol=1e-4)
    assert found["embed"].shape == (1,)
    assert found["layers/ffn/activation/coeffs"].shape == (2,)


@pytest.mark.slow
def test_gradients_that_float16_would_round_to_zero_have_their_norms(batch):
    cfg, params = model("tiny", "poly_norm")
    params["final_norm"] *= 1e-5  # all gradients before it are as much smaller
    wanted = analysis.gradient_norms(cfg, params, batch)
    found = analysis.gradient_norms(replace(cfg, dtype="float16"), params, batch)
    eps = float(jnp.finfo(jnp.float16).eps)
    for name, norms in wanted.items():
        np.testing.assert_allclose(found[name], norms, rtol=4 * eps, err_msg=name)
