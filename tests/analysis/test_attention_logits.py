"""Attention's largest logit and its shares against NumPy's loops, pair by pair."""

import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import analysis
from polycom_jax._errors import InputError

RNG = np.random.default_rng(0)


def plain(q, k, segments, mask):
    """float64, pair by pair."""
    batch, length, heads, width = q.shape
    served = heads // k.shape[2]
    found = np.full(heads, -np.inf)
    for h in range(heads):
        for b in range(batch):
            for i in range(length):
                for j in range(i + 1):
                    if mask[b, i] and segments[b, i] == segments[b, j]:
                        logit = q[b, i, h] @ k[b, j, h // served] / np.sqrt(width)
                        found[h] = max(found[h], logit)
    return found


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_largest_logit_is_over_what_a_query_sees(kv_heads: int):
    q, k = RNG.standard_normal((2, 6, 4, 3)), RNG.standard_normal((2, 6, kv_heads, 3))
    segments = np.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1]])
    mask = np.ones((2, 6), bool)
    mask[1, 4:] = False
    single = jnp.float32(q), jnp.float32(k)
    found = analysis.largest_logits(*single, segment_ids=jnp.array(segments), mask=jnp.array(mask))
    np.testing.assert_allclose(found, plain(q, k, segments, mask), rtol=1e-5)
    everything = plain(q, k, np.zeros((2, 6)), np.ones((2, 6)))
    np.testing.assert_allclose(analysis.largest_logits(*single), everything, rtol=1e-5)
    assert np.all(found <= everything + 1e-5)
    assert np.any(found < everything - 1e-5)


def test_where_no_query_counts_there_is_no_largest():
    q = jnp.ones((1, 2, 1, 2))
    assert analysis.largest_logits(q, q, mask=jnp.zeros((1, 2), bool)) == [-np.inf]


def plain_share(q, k, offset, segments, mask, window):
    """float64, query by query."""
    batch, length, heads, width = q.shape
    served = heads // k.shape[2]
    shares = [[] for _ in range(heads)]
    for h in range(heads):
        for b in range(batch):
            for i in range(length):
                own = [
                    j
                    for j in range(max(0, i - window + 1), i + 1)
                    if segments[b, i] == segments[b, j]
                ]
                if mask[b, i] and i - offset in own:
                    e = np.exp([q[b, i, h] @ k[b, j, h // served] / np.sqrt(width) for j in own])
                    shares[h].append(e[own.index(i - offset)] / e.sum())
    return np.array([np.mean(own) for own in shares])


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("offset", [0, 1, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_the_share_of_a_token_before(kv_heads: int, offset: int, window: int | None):
    q, k = RNG.standard_normal((2, 6, 4, 3)), RNG.standard_normal((2, 6, kv_heads, 3))
    segments = np.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1]])
    mask = np.ones((2, 6), bool)
    mask[1, 4:] = False
    given = {"segment_ids": jnp.array(segments), "mask": jnp.array(mask), "window": window}
    found = analysis.share_before(jnp.float32(q), jnp.float32(k), offset, **given)
    expected = plain_share(q, k, offset, segments, mask, window or 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_head_that_looks_at_the_token_before_is_one():
    keys = jnp.eye(5)[None, :, None, :]
    queries = 100 * jnp.roll(keys, 1, axis=1)  # that of token i is along key i - 1
    assert analysis.share_before(queries, keys, 1) == pytest.approx([1.0])
    assert analysis.share_before(queries, keys, 2) == pytest.approx([0.0])


def test_shares_without_a_query_and_of_tokens_to_come():
    q = jnp.ones((1, 3, 1, 2))
    assert np.isnan(analysis.share_before(q, q, 3))
    assert np.isnan(analysis.share_before(q, q, 1, segment_ids=jnp.array([[1, 2, 3]])))
    with pytest.raises(InputError, match="looks back"):
        analysis.share_before(q, q, -1)
