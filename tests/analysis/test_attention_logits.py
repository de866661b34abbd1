"""Attention's largest logit against NumPy's loops, pair by pair."""

import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import analysis

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
