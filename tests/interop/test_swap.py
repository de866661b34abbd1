"""Coefficients fitted to another activation: against float64 NumPy and known answers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import TINY

from polycom_jax import ActivationOptions, InputError, models
from polycom_jax.interop.swap import replacement, solve, swap
from polycom_jax.models import MoEConfig, layers
from polycom_jax.training.loss import IGNORED

CFG = replace(TINY, vocab_size=24, num_layers=2, gated_width=8, activation="swiglu")
PLAIN = ActivationOptions()


def make(activation: str):
    """A model whose hidden values are of order one."""
    cfg = replace(CFG, activation=activation)
    params = models.init(cfg, jax.random.key(0))
    ffn = params["layers"][0]["ffn"]
    for name in ("w_up", "w_gate"):
        if name in ffn:
            ffn[name] = 2 * ffn[name]
    return cfg, params


def batches(count: int, rows: int = 4, length: int = 12) -> Iterator[Any]:
    """Two documents a row."""
    place = np.arange(length)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        yield {
            "tokens": rng.integers(0, 24, (rows, length)),
            "mask": rng.random((rows, length)) < 0.8,
            "segment_ids": np.tile(np.where(place < 5, 1, 2).astype(np.int32), (rows, 1)),
            "positions": np.tile(place - 5 * (place >= 5), (rows, 1)),
        }


def test_a_polynomial_is_found_again():
    cfg, params = make("poly_relu")
    known = np.random.default_rng(3).normal(size=(2, 4)).astype(np.float32)
    params["layers"][0]["ffn"]["activation"] = {"coeffs": jnp.asarray(known)}
    found = swap(cfg, params, batches(2), replacement(cfg, "poly_relu", PLAIN))
    # Gram matrices are float32 sums, with condition numbers of about 1e3.
    np.testing.assert_allclose(
        found.params["layers"][0]["ffn"]["activation"]["coeffs"], known, atol=2e-3
    )
    np.testing.assert_allclose(found.explained, 1, atol=1e-5)


def test_squared_relu_is_the_second_power():
    cfg, params = make("relu2")
    found = swap(cfg, params, batches(2), replacement(cfg, "poly_relu", PLAIN))
    coeffs = found.params["layers"][0]["ffn"]["activation"]["coeffs"]
    np.testing.assert_allclose(coeffs, [[0, 0, 1, 0]] * 2, atol=2e-3)
    assert found.cfg == replace(cfg, activation="poly_relu")
    tokens = jnp.array([[1, 2, 3, 4]])
    forward = jax.jit(models.forward, static_argnums=0)
    before, after = forward(cfg, params, tokens), forward(found.cfg, found.params, tokens)
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_the_fit_of_a_gated_layer_is_the_least_squares_solution():
    cfg, params = make("swiglu")
    text = list(batches(3))
    row = replacement(cfg, "poly_norm", PLAIN)
    assert row.name == "poly_norm_glu"
    found = swap(cfg, params, text, row)
    columns, targets = ([], []), ([], [])
    for batch in text:
        x = params["embed"][batch["tokens"]]
        where = (layers.rotary(cfg, batch["positions"]), batch["segment_ids"], None, None)
        for number in range(cfg.num_layers):
            one = jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"][0])
            x = x + layers.attention(cfg, one["attention"], x, *where)[0]
            y = layers.rms_norm(x, one["ffn"]["norm"], cfg.norm_eps)
            y = np.asarray(y, np.float64)[batch["mask"]]
            gate, up = (y @ np.asarray(one["ffn"][w], np.float64) for w in ("w_gate", "w_up"))
            powers = [gate**0] + [
                gate**i / np.sqrt(np.mean(gate ** (2 * i), axis=-1, keepdims=True) + 1e-6)
                for i in (1, 2, 3)
            ]
            columns[number].append(np.stack([(p * up).ravel() for p in powers], axis=1))
            targets[number].append((gate / (1 + np.exp(-gate)) * up).ravel())
            x = x + layers.ffn(cfg, one["ffn"], x, None)
    for number in range(cfg.num_layers):
        a, b = np.concatenate(columns[number]), np.concatenate(targets[number])
        expected, *_ = np.linalg.lstsq(a, b)
        coeffs = found.params["layers"][0]["ffn"]["activation"]["coeffs"]
        np.testing.assert_allclose(coeffs[number], expected, atol=1e-4)
        explained = 1 - np.sum((b - a @ expected) ** 2) / np.sum(b**2)
        assert found.explained[number] == pytest.approx(explained, abs=1e-4)
        assert 0.5 < explained < 1


def test_all_but_the_activation_is_kept():
    cfg, params = make("gelu")
    found = swap(cfg, params, batches(1), replacement(cfg, "poly_prelu", PLAIN))
    new, old = found.params["layers"][0], params["layers"][0]
    assert new["ffn"]["activation"]["slope"].shape == (2,)
    assert jax.tree.structure(found.params) == jax.tree.structure(models.specs(found.cfg))
    assert new["ffn"]["w_up"] is old["ffn"]["w_up"]
    assert new["attention"] is old["attention"]


def test_columns_that_say_nothing_get_zero():
    gram = np.diag([4.0, 0.0, 1.0])
    np.testing.assert_allclose(solve(gram, np.array([2.0, 0.0, 3.0])), [0.5, 0, 3])


@pytest.mark.parametrize(
    ("cfg", "name", "options", "message"),
    [
        (CFG, "poly_relu", PLAIN, "no gated form .* poly_norm_glu"),
        (CFG, "geglu", PLAIN, "no coefficients to fit"),
        (replace(CFG, activation="gelu"), "poly_norm_glu", PLAIN, "wants a gate"),
        (replace(CFG, activation="gelu"), "silu", PLAIN, "no coefficients to fit"),
        (CFG, "poly_norm", ActivationOptions(sigmoid=True), "sigmoid and bound"),
        (replace(CFG, moe=MoEConfig(2, top_k=1)), "poly_norm", PLAIN, "dense models only"),
    ],
)
def test_what_cannot_be_fitted_is_refused(cfg, name, options, message):
    with pytest.raises(InputError, match=message):
        replacement(cfg, name, options)


def test_no_text_is_refused():
    cfg, params = make("gelu")
    masked = [{**batch, "mask": np.zeros((4, 12), bool)} for batch in batches(1)]
    for text in ([], masked):
        with pytest.raises(InputError, match="no text"):
            swap(cfg, params, text, replacement(cfg, "poly_norm", PLAIN))


def test_without_a_mask_tokens_with_a_target_count():
    cfg, params = make("gelu")
    new = replacement(cfg, "poly_norm", PLAIN)
    with_mask = list(batches(1))
    mask = with_mask[0].pop("mask")
    unmasked = [{**with_mask[0], "targets": np.where(mask, 1, IGNORED)}]
    found = [swap(cfg, params, text, new) for text in ([{**with_mask[0], "mask": mask}], unmasked)]
    np.testing.assert_array_equal(found[0].explained, found[1].explained)


def test_a_layer_that_gives_zeros_is_met_by_zeros():
    cfg, params = make("relu")
    ffn = params["layers"][0]["ffn"]
    ffn["w_up"] = ffn["w_up"].at[0].set(0)
    found = swap(cfg, params, batches(1), replacement(cfg, "poly_relu", PLAIN))
    assert found.explained[0] == 1
    assert not found.params["layers"][0]["ffn"]["activation"]["coeffs"][0].any()
