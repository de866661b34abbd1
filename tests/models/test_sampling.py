from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.models import sample, sampling
from polycom_jax.models.sampling import FEW, NO_TOKEN, greedy


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
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"temperature": float("inf")}, "temperature=inf must be 0"),
        ({"temperature": 1e39}, "temperature=1e.39 must be at most"),
        ({"temperature": True}, "temperature=True must be a number"),
        ({"temperature": "1"}, "temperature='1' must be a number"),
        ({"temperature": None}, "temperature=None must be a number"),
        ({"temperature": jnp.float32(-2)}, "temperature=-2.0 must be 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_k": -3}, "top_k=-3 must be at least 1"),
        ({"top_k": True}, "top_k=True must be a whole number"),
        ({"top_k": 2.0}, "top_k=2.0 must be a whole number"),
        ({"top_k": 2**40}, "top_k=.* must be at most"),
        ({"top_k": np.int64(0)}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
        ({"top_p": -0.1}, r"top_p=-0.1 must be in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p=nan must be in \(0, 1\]"),
        ({"top_p": False}, "top_p=False must be a number"),
    ],
)
def test_settings_that_no_distribution_fits_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        sample(jnp.zeros((2, 5)), jax.random.key(0), **settings)


NAN, INF = float("nan"), float("inf")


compiled = jax.jit(sample, static_argnames="temperature")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("row", [[NAN, 1.0], [INF, 1.0], [-INF, -INF]])
def test_logits_without_a_distribution_are_refused(row: list[float], temperature: float):
    logits = jnp.array([[1.0, 2.0], row])
    with pytest.raises(InputError, match="no distribution"):
        sample(logits, jax.random.key(0), temperature=temperature)
    drawn = compiled(logits, jax.random.key(0), temperature=temperature)
    assert drawn[0] in (0, 1)
    assert drawn[1] == NO_TOKEN
    np.testing.assert_array_equal(greedy(logits), [1, NO_TOKEN])


def test_what_is_masked_is_not_drawn():
    logits = jnp.tile(jnp.array([[-INF, 1.0, -INF, 0.5]]), (64, 1))
    every: list[Any] = [{}, {"top_k": 4}, {"top_p": 1.0, "top_k": 3}, {"temperature": 3e38}]
    for settings in every:
        assert set(np.asarray(sample(logits, jax.random.key(0), **settings))) == {1, 3}


@pytest.mark.parametrize("shape", [(5,), (1, 2, 5), (2, 0)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"must be \[batch, vocabulary\]"):
        sample(jnp.zeros(shape), jax.random.key(0))


@jax.jit
def draw(logits: jax.Array, settings: dict[str, Any]) -> jax.Array:
    return sample(logits, jax.random.key(1), **settings)


def traced(**settings: Any) -> np.ndarray:
    """Draws for 500 rows of one distribution, the settings being traced."""
    logits = jnp.tile(jnp.array([[0.0, 2.0, 2.0, 1.0, -1.0]]), (500, 1))
    return np.asarray(draw(logits, settings))


def test_traced_settings_draw_what_the_others_do():
    logits = jnp.tile(jnp.array([[0.0, 2.0, 2.0, 1.0, -1.0]]), (500, 1))
    every: list[Any] = [{"temperature": 0.0}, {"temperature": 0.5, "top_k": 3}, {"top_p": 0.6}]
    for settings in every:
        np.testing.assert_array_equal(
            traced(**settings), sample(logits, jax.random.key(1), **settings)
        )


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-38, 1e-37, 1e-30])
def test_low_temperatures_draw_the_most_probable_only(temperature: float):
    drawn = traced(temperature=temperature)
    assert set(drawn) <= {1, 2}
    if temperature < sampling.TINY:
        assert set(drawn) == {1}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": NAN},
        {"temperature": INF},
        {"top_k": 0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": NAN},
    ],
)
def test_traced_settings_that_no_distribution_fits_draw_no_token(settings: dict[str, float]):
    assert set(traced(**settings)) == {NO_TOKEN}


def test_traced_settings_are_one_number_each():
    with pytest.raises(InputError, match=r"temperature of shape \[500\] must be one number"):
        traced(temperature=jnp.ones(500))


def reference(logits: jax.Array, key: Any, top_k: int) -> jax.Array:
    """`jax.random.categorical` among the k alone."""
    kept, ids = jax.lax.top_k(logits - logits.max(axis=-1, keepdims=True), top_k)
    choice = jax.random.categorical(key, kept, axis=-1)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0]


def test_a_draw_is_that_of_the_kept_tokens_alone():
    logits, key = 2 * jax.random.normal(jax.random.key(0), (16, 2 * FEW)), jax.random.key(7)
    for top_k in (1, 3, FEW, FEW + 1, 2 * FEW):
        np.testing.assert_array_equal(
            sample(logits, key, top_k=top_k), reference(logits, key, top_k)
        )
    plain = jax.random.categorical(key, logits - logits.max(axis=-1, keepdims=True), axis=-1)
    np.testing.assert_array_equal(sample(logits, key), plain)
    np.testing.assert_array_equal(sample(logits, key, top_p=1.0), plain)


def test_three_temperatures_are_one_program():
    program: Any = sampling.draw
    before = program._cache_size()
    every: list[Any] = [{"temperature": 0.0}, {"temperature": 0.5}, {"top_k": 2, "top_p": 0.5}, {}]
    for settings in every:
        sample(jnp.zeros((3, 11)), jax.random.key(0), **settings)
    assert program._cache_size() == before + 1


def test_a_small_top_p_keeps_the_most_probable_token():
    logits = jnp.tile(jnp.array([[0.0, 1.0, 0.9]]), (64, 1))
    assert set(np.asarray(sample(logits, jax.random.key(0), top_p=1e-60))) == {1}
