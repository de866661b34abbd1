"""Ids outside the vocabulary: an error where they are known, no number where they are not."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import SMALL

from polycom_jax import InputError
from polycom_jax.models import forward, generate, init
from polycom_jax.models.ids import lookup

CFG = replace(
    SMALL,
    num_layers=1,
    embed_dim=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    gated_width=8,
    context_length=8,
)
OUTSIDE = [-100, -1, 40, 127, 128, 2**31 - 1]
"""40 to 127 are rows of padding."""


drawn = jax.jit(init, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return drawn(CFG, jax.random.key(0))


def test_an_id_outside_the_vocabulary_is_embedded_as_no_number():
    table = jnp.arange(128.0)[:, None] + 1
    rows = jax.jit(lambda ids: lookup(40, table, ids))(jnp.array([*OUTSIDE, 0, 39]))
    np.testing.assert_array_equal(rows[:, 0], [*[np.nan] * len(OUTSIDE), 1, 40])
    small = lookup(40, table, jnp.array([39, 200], jnp.uint8))  # no room for 128 in its dtype
    np.testing.assert_array_equal(small[:, 0], [40, np.nan])


def test_traced_it_leaves_no_logits_of_its_row(params):
    tokens = np.array([[1, 2, 3], [4, 5, 40], [-9, 8, 9]])
    logits = jax.jit(forward, static_argnums=0)(CFG, params, tokens)
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1, 2]).all()
    assert np.isnan(logits[2]).all()


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("as_array", [np.array, jnp.array])
def test_known_it_is_refused(params, outside: int, as_array: Any):
    tokens = as_array([[1, outside, 3]])
    message = f": {outside}, which is not from 0 to 39: the model has vocab_size=40"
    with pytest.raises(InputError, match=f"tokens{message}"):
        forward(CFG, params, tokens)
    with pytest.raises(InputError, match=f"prompt{message}"):
        generate(CFG, params, tokens, key=jax.random.key(0), max_new_tokens=1)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((0, 3), int), r"tokens of shape \[0, 3\] hold no token"),
        (np.zeros((2, 0), int), r"tokens of shape \[2, 0\] hold no token"),
        (np.zeros(3, int), r"tokens int\d+\[3\] must be integers \[batch, seq\]"),
        (np.zeros((1, 3)), r"tokens float\d+\[1, 3\] must be integers"),
        (np.zeros((1, 3), bool), r"tokens bool\[1, 3\] must be integers"),
    ],
)
def test_what_is_no_batch_of_tokens_is_refused(params, tokens: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        forward(CFG, params, jnp.asarray(tokens))


def test_arrays_beside_the_tokens_have_their_shape(params):
    with pytest.raises(InputError, match=r"positions of shape \(3,\) must have that of tokens"):
        forward(CFG, params, jnp.zeros((1, 3), jnp.int32), positions=jnp.arange(3))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.uint16, jnp.int32])
def test_ids_of_narrow_dtypes_are_the_same_ids(params, dtype: Any):
    tokens = jnp.array([[1, 2, 3]])
    wide = replace(CFG, vocab_size=256)  # a size that uint8 does not hold
    model = drawn(wide, jax.random.key(0))
    asked = {"key": jax.random.key(0), "max_new_tokens": 2, "temperature": 0.0}
    np.testing.assert_array_equal(
        generate(wide, model, tokens.astype(dtype), **asked), generate(wide, model, tokens, **asked)
    )
