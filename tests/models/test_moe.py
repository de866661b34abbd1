"""Router, losses and statistics of a mixture of experts against NumPy, and its place in a model."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycom_jax as pc
from polycom_jax import InputError
from polycom_jax import params as pm
from polycom_jax.models import (
    ModelConfig,
    MoEConfig,
    count_active_params,
    count_params,
    flops_per_token,
    forward,
    hidden,
    init,
    preset,
    specs,
)
from polycom_jax.models import moe as moe_module
from polycom_jax.models.moe import moe_specs, route, summary

TOKENS, WIDTH = 40, 6


def config(**moe: Any) -> ModelConfig:
    settings: dict[str, Any] = {"num_experts": 5, "top_k": 2} | moe
    return preset(
        "moe-tiny",
        vocab_size=32,
        num_layers=2,
        embed_dim=WIDTH,
        num_heads=1,
        num_kv_heads=1,
        head_dim=4,
        gated_width=8,
        moe=MoEConfig(**settings),
    )


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected(y: np.ndarray, router: np.ndarray, k: int) -> dict[str, Any]:
    logits = y.astype(np.float64) @ router.astype(np.float64)
    powers = np.exp(logits)
    p = powers / powers.sum(1, keepdims=True)
    chosen = np.argsort(-p, axis=1, kind="stable")[:, :k]
    share = np.bincount(chosen.ravel(), minlength=p.shape[1]) / chosen.size
    return {
        "p": p,
        "chosen": chosen,
        "load": share * p.shape[1],
        "load_balance_loss": p.shape[1] * np.sum(share * p.mean(0)),
        "router_z_loss": np.mean(np.log(powers.sum(1)) ** 2),
        "entropy": -np.mean(np.sum(p * np.log(p), axis=1)),
    }


@pytest.mark.parametrize("normalize", [False, True])
def test_the_router_takes_the_most_probable(normalize: bool):
    y, router = numbers((TOKENS, WIDTH), 0), numbers((WIDTH, 5), 1)
    cfg = config(normalize_top_k=normalize)
    weights, chosen, statistics = route(cfg, jnp.array(router), jnp.array(y))
    want = expected(y, router, 2)
    np.testing.assert_array_equal(chosen, want["chosen"])
    picked = np.take_along_axis(want["p"], want["chosen"], 1)
    if normalize:
        picked = picked / picked.sum(1, keepdims=True)
    # Softmax of logits of a few units: a few roundings of float32 on numbers up to 10.
    np.testing.assert_allclose(weights, picked, rtol=5e-6)
    for name in ("load", "load_balance_loss", "router_z_loss", "entropy"):
        np.testing.assert_allclose(statistics[name], want[name], rtol=5e-6, err_msg=name)


def test_losses_and_statistics_are_of_the_tokens_that_count():
    y, router = numbers((TOKENS, WIDTH), 0), numbers((WIDTH, 5), 1)
    counted = np.random.default_rng(2).random(TOKENS) < 0.4
    found = route(config(), jnp.array(router), jnp.array(y), jnp.array(counted))
    want = expected(y[counted], router, 2)
    for name in ("load", "load_balance_loss", "router_z_loss", "entropy"):
        np.testing.assert_allclose(found.statistics[name], want[name], rtol=5e-6, err_msg=name)
    np.testing.assert_array_equal(found.chosen, expected(y, router, 2)["chosen"])
    nothing = route(config(), jnp.array(router), jnp.array(y), jnp.zeros(TOKENS, bool)).statistics
    assert all(not np.any(value) for value in nothing.values())


def test_even_routing_has_a_load_balance_loss_of_one():
    y, router = np.eye(5, dtype=np.float32), 20 * np.eye(5, dtype=np.float32)
    statistics = route(config(top_k=1), jnp.array(router), jnp.array(y)).statistics
    np.testing.assert_allclose(statistics["load"], np.ones(5))
    np.testing.assert_allclose(statistics["load_balance_loss"], 1.0, rtol=1e-6)


def test_the_load_balance_loss_pushes_probability_off_the_busiest_expert():
    y = np.abs(numbers((TOKENS, WIDTH), 2))
    router = numbers((WIDTH, 5), 3) * 0.1
    router[:, 4] += 1  # every token goes there

    def loss(router: jax.Array) -> jax.Array:
        return route(config(), router, jnp.array(y)).statistics["load_balance_loss"]

    gradient = np.asarray(jax.grad(loss)(jnp.array(router)))
    assert np.all(gradient[:, 4] > 0)
    assert np.all(gradient.sum(1) < 1e-6)  # a softmax does not feel a common shift


def test_the_summary_weighs_means_over_layers():
    cfg = config(load_balance_weight=0.5, router_z_weight=0.25)
    layers = {
        "load": jnp.array([[0.0, 2.0], [1.0, 1.0]]),
        "load_balance_loss": jnp.array([1.0, 3.0]),
        "router_z_loss": jnp.array([4.0, 8.0]),
        "entropy": jnp.array([0.5, 0.7]),
        "dropped": jnp.array([0.0, 0.5]),
    }
    aux = summary(cfg, layers)
    np.testing.assert_allclose(aux["auxiliary_loss"], 0.5 * 2 + 0.25 * 6)
    np.testing.assert_allclose(aux["expert_load"], [0.5, 1.5])
    assert (aux["expert_load_min"], aux["expert_load_max"]) == (0, 2)
    np.testing.assert_allclose(aux["router_entropy"], 0.6, rtol=1e-6)
    np.testing.assert_allclose(aux["dropped_share"], 0.25)


def test_the_dropped_share_is_of_the_choices_that_count(monkeypatch: pytest.MonkeyPatch):
    cfg = config()
    params = pm.init(moe_specs(cfg), jax.random.key(0))
    x, mask = jnp.ones((2, 6, WIDTH)), jnp.arange(12).reshape(2, 6) < 5
    dropped = lambda cfg, params, y, *rest, **more: (y, jnp.int32(6))  # noqa: E731
    monkeypatch.setattr(moe_module, "run_experts", dropped)
    # Six of two choices each of five tokens, or of all twelve.
    assert float(moe_module.moe(cfg, params, x, None, mask)[1]["dropped"]) == pytest.approx(6 / 10)
    assert float(moe_module.moe(cfg, params, x, None)[1]["dropped"]) == pytest.approx(6 / 24)


def test_the_paper_model_has_its_total_and_active_parameters():
    # Counted there with the vocabulary's 24 padding rows and without norms and coefficients.
    cfg = preset("moe-1b-7b", activation="swiglu", vocab_size=50_304)
    norms = 16 * 4 * 2048 + 2048
    assert count_params(cfg) - norms == 6_919_028_736
    assert count_active_params(cfg) - norms == 1_281_884_160


def test_poly_norm_adds_four_parameters_a_layer_or_an_expert():
    plain = preset("moe-1b-7b", activation="relu2")
    shared = preset("moe-1b-7b")
    own = replace(shared, moe=replace(shared.moe, coefficients="expert"))
    assert count_params(shared) - count_params(plain) == 4 * 16
    assert count_params(own) - count_params(plain) == 4 * 16 * 64
    assert count_active_params(shared) - count_active_params(plain) == 4 * 16
    assert count_active_params(own) - count_active_params(plain) == 4 * 16 * 8


def test_experts_of_width_1536_or_1024_gated():
    assert preset("moe-1b-7b").hidden_width == 1536
    assert preset("moe-1b-7b", activation="swiglu").hidden_width == 1024


def test_flops_are_those_of_active_matrices():
    cfg = preset("moe-1b-7b")
    norms, coefficients = 16 * 4 * 2048 + 2048, 4 * 16
    multiplied = count_active_params(cfg) - norms - coefficients - 50_280 * 2048
    assert flops_per_token(cfg, 4096).matmul == 2 * multiplied
    assert flops_per_token(cfg, 4096).activation == 16 * 8 * 1536 * cfg.activation_fn.flops


def test_each_expert_starts_with_its_own_values_and_coefficients_alike():
    cfg = config(coefficients="expert")
    params = pm.init(moe_specs(cfg), jax.random.key(0))
    assert params["activation"]["coeffs"].shape == (5, 4)
    np.testing.assert_allclose(params["activation"]["coeffs"][:, 1:], 1 / 3, rtol=1e-6)
    assert not np.array_equal(params["w_up"][0], params["w_up"][1])
    drawn = pc.Parameter(jax.nn.initializers.normal(1.0), per="expert", shape=(3,))
    own = pc.activation(lambda x, a: x * jnp.sum(a), {"a": drawn}, name="own")
    values = pm.init(moe_specs(replace(cfg, activation=own)), jax.random.key(0))["activation"]["a"]
    assert values.shape == (5, 3)
    assert len({float(value) for value in values[:, 0]}) == 5


@pytest.mark.parametrize(
    "activation", ["poly_norm", pytest.param("swiglu", marks=pytest.mark.slow)]
)
def test_a_model_gives_logits_gradients_and_statistics(activation: str):
    cfg = replace(config(), activation=activation)
    params = jax.jit(init, static_argnums=0)(cfg, jax.random.key(0))
    tokens = jnp.array(np.random.default_rng(0).integers(0, 32, (2, 7)))

    def loss(params: Any) -> tuple[jax.Array, Any]:
        x, aux, _ = hidden(cfg, params, tokens)
        return jnp.sum(jnp.square(x)) + aux["auxiliary_loss"], aux

    grads, aux = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert jax.eval_shape(lambda p: forward(cfg, p, tokens), params).shape == (2, 7, 32)
    assert aux["expert_load"].shape == (5,)
    np.testing.assert_allclose(aux["expert_load"].sum(), 5, rtol=1e-6)
    assert aux["dropped_share"] == 0
    assert 0 < aux["router_entropy"] <= np.log(5)
    for path, value in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(value)), path
    assert float(jnp.max(jnp.abs(grads["layers"][0]["moe"]["router"]))) > 0


def test_router_and_norms_stay_float32():
    cfg = replace(config(), dtype="bfloat16")
    declared = specs(cfg)["layers"][0]
    arrays = pm.abstract(declared)
    cast = jax.eval_shape(lambda p: pm.cast(declared, p, "bfloat16"), arrays)["moe"]
    assert cast["router"].dtype == cast["activation"]["coeffs"].dtype == jnp.float32
    assert cast["w_up"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 6}, r"moe.top_k=6 is more than moe.num_experts=5"),
        ({"top_k": 0}, "moe.top_k=0 must be at least 1"),
        ({"num_experts": -1}, "moe.num_experts=-1 must be at least 0"),
        ({"coefficients": "experts"}, "Did you mean 'expert'"),
        ({"capacity_factor": 0.0}, "moe.capacity_factor=0.0 must be positive"),
        ({"router_z_weight": float("nan")}, "moe.router_z_weight=nan must be at least 0"),
    ],
)
def test_bad_settings_name_field_value_and_rule(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        config(**change)
