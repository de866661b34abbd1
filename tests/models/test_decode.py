from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.models import ModelConfig, forward, generate, init, sample

CFG = ModelConfig(
    vocab_size=40,
    num_layers=2,
    embed_dim=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    gated_width=32,
    context_length=32,
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: jax.tree.map(lambda p: p * 8, init(CFG, key)))(jax.random.key(0))


def test_greedy_decoding_equals_repeated_uncached_forward_passes(params):
    prompt = jax.random.randint(jax.random.key(1), (2, 5), 0, CFG.vocab_size)
    got = generate(CFG, params, prompt, key=jax.random.key(2), max_new_tokens=8, temperature=0)
    # Uncached: what a forward pass over everything says, at every place.
    everything = jnp.concatenate([prompt, got], axis=1)
    logits = jax.jit(forward, static_argnums=0)(CFG, params, everything)
    np.testing.assert_array_equal(got, logits[:, 4:-1].argmax(-1))


def test_a_longer_continuation_begins_with_the_shorter_one(params):
    prompt = jnp.array([[1, 2, 3]])
    key = jax.random.key(3)
    short = generate(CFG, params, prompt, key=key, max_new_tokens=4)
    long = generate(CFG, params, prompt, key=key, max_new_tokens=9)
    np.testing.assert_array_equal(long[:, :4], short)


def test_rows_stop_at_the_stop_token(params):
    prompt = jnp.tile(jnp.array([[1, 2, 3]]), (64, 1))
    key = jax.random.key(3)
    out = np.asarray(generate(CFG, params, prompt, key=key, max_new_tokens=24, stop_token=7))
    stopped = [row for row in out if 7 in row[:-1]]
    assert stopped
    for row in stopped:
        assert set(row[list(row).index(7) :]) == {7}


def probabilities(logits: np.ndarray, **settings) -> np.ndarray:
    """Frequencies of 20,000 draws."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (20_000, len(logits)))
    draws = sample(rows, jax.random.key(0), **settings)
    return np.bincount(np.asarray(draws), minlength=len(logits)) / 20_000


def test_sampling_follows_the_stated_distribution():
    p = np.array([0.5, 0.25, 0.15, 0.1])
    close = {"atol": 4 * 0.5 / 20_000**0.5}  # four deviations of a frequency
    np.testing.assert_allclose(probabilities(np.log(p)), p, **close)
    squared = p**2 / (p**2).sum()
    np.testing.assert_allclose(probabilities(np.log(p), temperature=0.5), squared, **close)
    top = np.array([2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(probabilities(np.log(p), top_k=2), top, **close)
    np.testing.assert_allclose(probabilities(np.log(p), top_p=0.7), top, **close)
    np.testing.assert_allclose(probabilities(np.log(p), top_p=0.4), [1, 0, 0, 0], **close)
    np.testing.assert_allclose(probabilities(np.log(p), top_p=1.0, top_k=99), p, **close)


def test_ties_and_extremes_do_not_widen_the_choice():
    ties = np.zeros(10)
    assert list(probabilities(ties, top_k=1).nonzero()[0]) == [0]
    assert list(probabilities(ties, top_p=0.1).nonzero()[0]) == [0]
    assert list(probabilities(ties, top_p=0.25).nonzero()[0]) == [0, 1, 2]
    assert probabilities(np.array([5.0, 9, 1, 8]), temperature=1e-38)[1] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_settings_without_a_distribution_are_refused(params, settings: dict, message: str):
    settings = {"max_new_tokens": 2, **settings}
    with pytest.raises(InputError, match=message):
        generate(CFG, params, jnp.array([[1]]), key=jax.random.key(0), **settings)


def test_bfloat16_models_generate_from_a_bfloat16_cache(params):
    cfg = replace(CFG, dtype="bfloat16")
    out = generate(cfg, params, jnp.array([[1, 2]]), key=jax.random.key(0), max_new_tokens=3)
    assert out.shape == (1, 3)
