from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import params as pm
from polycom_jax.models import count_params, flops_per_token, forward, mfu, preset, specs


def test_the_palm_count_of_the_paper_model():
    # 6 N with N = parameters that are multiplied (no embedding, no norms), + 12 L D T.
    cfg = preset("dense-1b", activation="swiglu")
    n = 1_345_423_360 - 32_000 * 2048 - (2 * 24 + 1) * 2048
    flops = flops_per_token(cfg, 4096)
    assert 3 * flops.matmul == 6 * n
    assert 3 * flops.attention == 12 * 24 * 2048 * 4096


def test_the_causal_count_halves_attention_only():
    cfg = preset("dense-1b")
    full, causal = flops_per_token(cfg, 4096), flops_per_token(cfg, 4096, attention="causal")
    assert causal.attention * 2 == full.attention
    assert causal.matmul == full.matmul


def test_a_window_bounds_the_pairs_and_the_causal_count_is_of_those_seen():
    cfg = preset("dense-1b")
    for window, length in ((1000, 4096), (4095, 4096), (4096, 4096), (5000, 4096)):
        windowed = replace(cfg, attention_window=window)
        places = range(length)
        seen = sum(min(t + 0.5, window) for t in places) / length  # a token's own pair is half one
        per_pair = 4 * cfg.num_layers * cfg.embed_dim
        full, causal = (
            flops_per_token(windowed, length, attention=count).attention / per_pair
            for count in ("full", "causal")
        )
        assert full == min(window, length)
        assert causal == pytest.approx(seen, rel=1e-6)


def test_gated_and_other_widths_cost_the_same_matmuls():
    gated = flops_per_token(preset("dense-1b", activation="swiglu"), 4096)
    other = flops_per_token(preset("dense-1b", activation="poly_norm"), 4096)
    assert gated.matmul == other.matmul
    # At D = 2048 PolyNorm's own operations are a fraction of a percent.
    assert 0 < other.activation / other.matmul < 0.005


def test_the_count_agrees_with_the_compiler():
    cfg = preset("tiny", activation="relu", num_layers=1)
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    compiled = (
        jax.jit(lambda p, t: forward(cfg, p, t)).lower(pm.abstract(specs(cfg)), ids).compile()
    )
    cost = compiled.cost_analysis()
    assert cost is not None
    counted = flops_per_token(cfg, 256)
    # The compiler adds norms, RoPE and softmax, and multiplies the padding.
    assert cost["flops"] / 256 == pytest.approx(counted.forward, rel=0.05)


def test_heads_that_share_keys_and_are_wider_than_the_stream_are_counted_as_such():
    cfg = preset("tiny", tie_embeddings=False, num_heads=6, num_kv_heads=2, head_dim=40)
    kept = cfg.vocab_size * 192 + (2 * 4 + 1) * 192 + 4 * 4  # embedding, norms, coefficients
    flops = flops_per_token(cfg, 100)
    assert flops.matmul == 2 * (count_params(cfg) - kept)
    assert flops.attention == 2 * 2 * 4 * (6 * 40) * 100  # scores and sums, in four layers


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_mfu_is_one_at_the_peak(attention: Any):
    cfg = preset("tiny")
    flops = flops_per_token(cfg, 256, attention=attention)
    peak = 3.0 * (flops.matmul + flops.attention) * 1000
    assert mfu(cfg, 1000, 256, peak, attention=attention) == pytest.approx(1)
