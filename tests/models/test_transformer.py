"""Causality, positions, documents, padding, caching: what changes, and what does not."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapes
from jax.sharding import NamedSharding

from polycom_jax import ACTIVATIONS, InputError
from polycom_jax import params as pm
from polycom_jax.models import (
    ModelConfig,
    forward,
    hidden,
    init,
    init_cache,
    layers,
    specs,
    unembed,
)
from polycom_jax.models.layers import rms_norm
from polycom_jax.rows import BASELINES, POLYCOM
from polycom_jax.sharding import Rules, make_mesh

SMALL = replace(shapes.SMALL, vocab_size=50, num_heads=4, head_dim=8, context_length=16)
VARIANTS = {
    "default": SMALL,
    "mha": replace(SMALL, num_kv_heads=4),
    "mqa": replace(SMALL, num_kv_heads=1),
    "qk_head": replace(SMALL, qk_norm="head"),
    "qk_full": replace(SMALL, qk_norm="full"),
    "tied": replace(SMALL, tie_embeddings=True),
    "olmo": replace(SMALL, init="olmo"),
    "remat": replace(SMALL, remat="full"),
    "remat_dots": replace(SMALL, remat="dots"),
    "remat_attention": replace(SMALL, remat="attention"),
}


def tokens(batch: int = 2) -> jax.Array:
    return jax.random.randint(jax.random.key(0), (batch, 12), 0, SMALL.vocab_size)


run = jax.jit(hidden, static_argnums=0)
logits_of = jax.jit(forward, static_argnums=0)


@cache
def weights(cfg: ModelConfig, gain: float = 10.0) -> Any:
    # Ten times the usual deviation: at initialisation attention is almost uniform, and a test that
    # compares outputs would hardly see it.
    if cfg.remat != SMALL.remat:  # the same parameters
        return weights(replace(cfg, remat=SMALL.remat), gain)
    params = jax.jit(lambda key: init(cfg, key))(jax.random.key(1))
    scale = jax.tree.map(lambda m: gain if m else 1.0, pm.mask(specs(cfg), {"matrix"}))
    return jax.tree.map(lambda p, s: p * s, params, scale)


def variants(*but: str) -> list[Any]:
    """All but these; some lie between others, and are among the longer tests."""
    between = ("mha", "qk_full", "mqa", "qk_head")
    return [
        pytest.param(name, marks=pytest.mark.slow if name in between else ())
        for name in VARIANTS
        if name not in but
    ]


@pytest.mark.parametrize("name", variants("tied", "olmo"))
def test_the_future_has_exactly_zero_gradient(name: str):
    cfg = VARIANTS[name]
    params, ids = weights(cfg), tokens()

    def output_at(embedded: jax.Array, place: int) -> jax.Array:
        # Inputs enter as embeddings, so that they have gradients: one embedding row a position.
        own = {**params, "embed": embedded.reshape(-1, cfg.embed_dim)}
        index = jnp.arange(embedded.shape[0] * embedded.shape[1]).reshape(embedded.shape[:2])
        x, _, _ = hidden(cfg, own, index)
        return x[:, place].sum()

    embedded = jnp.take(params["embed"], ids, axis=0)
    gradient = jax.jit(jax.grad(output_at), static_argnums=1)(embedded, 5)
    assert np.all(np.asarray(gradient[:, 6:]) == 0)
    assert np.all(np.abs(np.asarray(gradient[:, :6])).max(axis=-1) > 0)


# What is computed again in a backward pass is no other forward pass, nor are other initial values.
@pytest.mark.parametrize("name", variants("olmo", "remat", "remat_dots", "remat_attention"))
def test_a_cached_pass_equals_the_uncached_one(name: str):
    cfg = VARIANTS[name]
    params, ids = weights(cfg), tokens()
    expected = logits_of(cfg, params, ids)
    kv, parts = init_cache(cfg, 2, 12), []
    for part in (ids[:, :5], ids[:, 5:10], ids[:, 10:11], ids[:, 11:]):
        x, _, kv = run(cfg, params, part, cache=kv)
        parts.append(x)
    got = unembed(cfg, params, jnp.concatenate(parts, axis=1))
    chex.assert_trees_all_close(got, expected, rtol=2e-4, atol=2e-4)
    assert np.all(np.asarray(kv["length"]) == 12)


def test_rows_of_a_cache_may_have_different_lengths():
    params, ids = weights(SMALL), tokens()
    expected = logits_of(SMALL, params, ids)
    _, _, kv = run(SMALL, params, ids[:, :7], cache=init_cache(SMALL, 2, 12))
    kv["length"] = jnp.array([3, 7], jnp.int32)  # row 0's prompt was padded from 3 to 7
    following = jnp.stack([ids[0, 3:5], ids[1, 7:9]])
    x, _, _ = run(SMALL, params, following, cache=kv)
    got = unembed(SMALL, params, x)
    chex.assert_trees_all_close(got[0], expected[0, 3:5], rtol=2e-4, atol=2e-4)
    chex.assert_trees_all_close(got[1], expected[1, 7:9], rtol=2e-4, atol=2e-4)


def test_shifting_all_positions_changes_nothing():
    params, ids = weights(SMALL), tokens()
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    near = logits_of(SMALL, params, ids, positions=positions)
    far = logits_of(SMALL, params, ids, positions=positions + 1000)
    # Angles near 1000 carry float32's absolute error there, 1000 * 2^-24.
    chex.assert_trees_all_close(near, far, rtol=0, atol=3e-3)
    stretched = logits_of(SMALL, params, ids, positions=positions * 3)
    assert float(jnp.abs(near - stretched).max()) > 0.1


def test_a_document_does_not_see_the_one_before():
    params, ids = weights(SMALL), tokens()
    segments = jnp.broadcast_to(jnp.where(jnp.arange(12) < 5, 1, 2), (2, 12))
    positions = jnp.broadcast_to(
        jnp.where(jnp.arange(12) < 5, jnp.arange(12), jnp.arange(12) - 5), (2, 12)
    )
    packed = logits_of(SMALL, params, ids, segment_ids=segments, positions=positions)
    alone = logits_of(SMALL, params, ids[:, 5:])
    chex.assert_trees_all_close(packed[:, 5:], alone, rtol=2e-4, atol=2e-4)
    assert float(jnp.abs(logits_of(SMALL, params, ids)[:, 5:] - alone).max()) > 0.1


def test_rms_norm_is_computed_in_float32(strict_dtypes: None):
    # In bfloat16 a running sum of ones stops at 256, and the result would be 4 times too large.
    got = rms_norm(jnp.ones((3, 4096), jnp.bfloat16), jnp.full((4096,), 2.0), 1e-5)
    assert got.dtype == jnp.bfloat16
    chex.assert_trees_all_close(got.astype(jnp.float32), jnp.full((3, 4096), 2.0), rtol=2**-8)


def test_norms_have_the_config_s_epsilon_inside_their_root():
    x = jax.random.normal(jax.random.key(1), (1, 3, 2, 4))

    def norm(x: Any, axes: Any) -> np.ndarray:
        x = np.asarray(x, np.float64)
        return 2 * x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + 0.5)

    cfg, twos = replace(SMALL, norm_eps=0.5), jnp.full((8,), 2.0)
    final = layers.final_norm(cfg, {"final_norm": twos[:4]}, x)
    np.testing.assert_allclose(final, norm(x, -1), rtol=1e-6)
    for kind, axes, width in (("head", -1, 4), ("full", (-2, -1), 8)):
        of = replace(cfg, qk_norm=kind)
        got = layers._qk_norm(of, {"q_norm": twos[:width]}, "q_norm", x)
        np.testing.assert_allclose(got, norm(x, axes), rtol=1e-6)


def test_matrices_are_cast_and_the_rest_stays_float32():
    cfg = replace(SMALL, dtype="bfloat16")
    params = weights(cfg, gain=1.0)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    x, _, _ = run(cfg, params, tokens())
    assert x.dtype == jnp.bfloat16
    logits = logits_of(cfg, params, tokens())
    assert logits.dtype == jnp.float32
    kv = jax.eval_shape(lambda: init_cache(cfg, 2, 12))["layers"][0]
    assert kv["k"].dtype == kv["v"].dtype == jnp.bfloat16
    reference = logits_of(SMALL, params, tokens())
    # A bfloat16 rounding is 2^-9 at most; some ten of them stand one behind the other.
    error = float(jnp.linalg.norm(logits - reference) / jnp.linalg.norm(reference))
    assert 2**-12 < error < 10 * 2**-9


def test_padded_logits_are_masked_and_public_ones_are_not_padded():
    params = weights(SMALL)
    x, _, _ = run(SMALL, params, tokens())
    assert unembed(SMALL, params, x).shape == (2, 12, 50)
    padded = unembed(SMALL, params, x, padded=True)
    assert padded.shape == (2, 12, 128)
    probabilities = jax.nn.softmax(padded, axis=-1)
    assert np.all(np.asarray(probabilities[..., 50:]) == 0)
    assert np.all(np.asarray(params["embed"][50:]) == 0)


def test_vocabulary_padding_depends_on_the_tensor_axis_and_values_do_not():
    key = jax.random.key(0)
    narrow, wide = init(SMALL, key), init(SMALL, key, tensor=4)
    assert wide["embed"].shape == (512, 32)
    chex.assert_trees_all_equal(narrow["embed"][:50], wide["embed"][:50])


def test_equal_names_and_shapes_start_bit_identical_across_activations():
    key = jax.random.key(7)
    reference = init(replace(SMALL, activation="swiglu", ffn_width=48), key)
    flat = dict(jax.tree_util.tree_leaves_with_path(reference))
    for name in (*POLYCOM, *BASELINES, "xielu", "asqu"):
        other = init(replace(SMALL, activation=name, ffn_width=48), key)
        for path, leaf in jax.tree_util.tree_leaves_with_path(other):
            if path in flat:
                chex.assert_trees_all_equal(leaf, flat[path])


def test_initial_deviations_follow_the_official_script():
    cfg = replace(SMALL, embed_dim=128, num_layers=8, gated_width=256, vocab_size=2000)
    drawn = jax.jit(init, static_argnums=0)
    params = drawn(cfg, jax.random.key(0))
    std = (2 / (5 * 128)) ** 0.5
    group = params["layers"][0]
    assert float(params["unembed"][:2000].std()) == pytest.approx(std, rel=0.02)
    assert float(group["ffn"]["w_up"].std()) == pytest.approx(std, rel=0.02)
    assert float(group["ffn"]["w_down"].std()) == pytest.approx(std / 4, rel=0.02)
    assert float(group["attention"]["w_o"].std()) == pytest.approx(std / 4, rel=0.05)
    olmo = drawn(replace(cfg, init="olmo"), jax.random.key(0))["layers"][0]["ffn"]["w_up"]
    assert float(jnp.abs(olmo).max()) <= 0.06 + 1e-7
    # A normal cut at three deviations has 0.9866 of its deviation left.
    assert float(olmo.std()) == pytest.approx(0.02 * 0.9866, rel=0.01)


@pytest.mark.parametrize(
    "name", ["poly_norm", pytest.param("poly_norm_glu", marks=pytest.mark.slow)]
)
def test_logits_and_gradients_do_not_depend_on_the_mesh(name: str):
    """The norms of PolyNorm run over a hidden axis that is split here; training has the others."""
    cfg = replace(SMALL, activation=name)

    def loss(params: Any, ids: jax.Array, rules: Rules | None) -> jax.Array:
        x, _, _ = hidden(cfg, params, ids, rules=rules)
        return jnp.square(unembed(cfg, params, x)).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    params, ids = weights(cfg, gain=1.0), tokens(batch=8)
    expected = gradient(params, ids, None)
    mesh = make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        split_ids = jax.device_put(ids, NamedSharding(mesh, Rules().partition(("batch", "seq"))))
        split_params = jax.device_put(params, pm.shardings(specs(cfg), mesh, Rules()))
        got = gradient(split_params, split_ids, Rules())

    def relative_error(a: jax.Array, b: jax.Array) -> float:
        return float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / np.linalg.norm(b))

    errors = jax.tree.map(relative_error, jax.device_get(got), jax.device_get(expected))
    # Sums in another order: some ten roundings of 2^-24, one behind the other.
    assert max(jax.tree.leaves(errors)) < 10 * 2**-24 * 2


def test_every_activation_has_a_forward_pass_over_its_own_spec_table():
    for name in ACTIVATIONS:
        cfg = replace(SMALL, activation=name, ffn_width=64)
        shape = jax.eval_shape(
            lambda p, ids, cfg=cfg: forward(cfg, p, ids), pm.abstract(specs(cfg)), tokens()
        )
        assert shape.shape == (2, 12, 50)


def test_more_tokens_than_a_cache_holds_are_refused():
    with pytest.raises(InputError, match="12 tokens do not fit a cache for 8"):
        hidden(SMALL, weights(SMALL), tokens(), cache=init_cache(SMALL, 2, 8))


def test_the_second_part_is_refused_where_the_first_left_no_room():
    _, _, kv = run(SMALL, weights(SMALL), tokens()[:, :7], cache=init_cache(SMALL, 2, 12))
    with pytest.raises(InputError, match="12 tokens do not fit a cache for 12 that holds 7"):
        hidden(SMALL, weights(SMALL), tokens(), cache=kv)


@pytest.mark.parametrize(
    ("length", "message"),
    [(0, "length=0: a cache must have room"), (2.5, "length=2.5 must be a whole number")],
)
def test_a_cache_without_room_is_refused(length: Any, message: str):
    with pytest.raises(InputError, match=message):
        init_cache(SMALL, 2, length)


def test_segments_with_a_cache_are_refused():
    with pytest.raises(InputError, match="segment_ids with a cache"):
        hidden(
            SMALL, weights(SMALL), tokens(), segment_ids=tokens(), cache=init_cache(SMALL, 2, 12)
        )


def test_the_rotary_turns_are_computed_outside_of_the_layers_loop():
    # JAX itself moves them out of what is kept, but not of what is computed again.
    cfg = replace(SMALL, remat="attention", unroll=1)
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    step = jax.make_jaxpr(jax.grad(lambda p, ids: jnp.sum(hidden(cfg, p, ids)[0])))
    equations = step(pm.abstract(specs(cfg)), ids).jaxpr.eqns
    loops = [str(eqn) for eqn in equations if eqn.primitive.name == "scan"]
    assert len(loops) == 2
    assert not any(re.search(r"\b(sin|cos)\b", loop) for loop in loops)
    assert "sin" in {eqn.primitive.name for eqn in equations}
