"""Attention to nothing: no sequences, no tokens, no heads; and to what does not fit together."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import InputError
from polycom_jax.kernels.attention import attention


@pytest.mark.parametrize("shape", [(0, 512), (1, 0)])
def test_no_queries_get_nothing(shape: tuple[int, int]):
    q, k = jnp.zeros((*shape, 4, 8)), jnp.zeros((*shape, 2, 8))
    assert attention(q, k, k).shape == q.shape
    with pytest.raises(InputError, match="there are no queries"):
        attention(q, k, k, implementation="blocks")


def test_no_heads_of_keys_are_refused():
    k = jnp.zeros((1, 6, 0, 8))
    with pytest.raises(InputError, match="4 query heads are no multiple of 0"):
        attention(jnp.zeros((1, 6, 4, 8)), k, k)


@pytest.mark.parametrize("length", [8, 512])  # plain operations, and blocks
@pytest.mark.parametrize(
    ("keys", "values", "masks", "message"),
    [
        ((1, 0, 2, 8), None, {}, "expected q"),
        ((2, 0, 2, 8), (2, 0, 1, 8), {}, "expected q"),
        ((2, 0, 2, 4), None, {}, "expected q"),
        ((2, 0, 2, 8), (2, 0, 2, 4), {}, "expected q"),
        (
            (2, 0, 2, 8),
            None,
            {"segment_ids": (2, 1)},
            r"segment_ids of shape \(2, 1\)",
        ),
        ((2, 0, 2, 8), None, {"segment_ids": (1, 0)}, r"segment_ids of shape \(1, "),
        ((2, 0, 2, 8), None, {"start": (1,)}, r"start of shape \(1,\) must be \(2,\)"),
    ],
)
def test_what_would_be_repeated_until_it_fits_is_refused(length, keys, values, masks, message):
    def array(shape, dtype=jnp.float32):
        return jnp.zeros([size or length for size in shape], dtype)

    q, k, v = array((2, 0, 4, 8)), array(keys), array(values or keys)
    given: Any = {name: array(shape, jnp.int32) for name, shape in masks.items()}
    with pytest.raises(InputError, match=message):
        attention(q, k, v, **given)


def test_gradients_have_the_dtypes_of_what_they_are_of():
    q, k = jnp.ones((1, 8, 2, 4), jnp.bfloat16), jnp.ones((1, 8, 2, 4))

    def total(q, k, v):
        return attention(q, k, v, implementation="blocks").astype(jnp.float32).sum()

    grads = jax.grad(total, argnums=(0, 1, 2))(q, k, k)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
