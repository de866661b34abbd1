import numpy as np
import pytest

import polycom_jax as pc
from polycom_jax import InputError
from polycom_jax.activations import poly_norm_glu
from polycom_jax.interop import upstream

X = np.random.default_rng(0).normal(size=(5, 64))
WEIGHT, BIAS = np.array([0.5, -0.2, 0.7]), np.array([0.1])


def norm(u):
    return u / np.sqrt(np.mean(u**2, axis=-1, keepdims=True) + 1e-6)


def test_poly_norm_with_official_weights_is_the_official_sum():
    official = WEIGHT[0] * norm(X**3) + WEIGHT[1] * norm(X**2) + WEIGHT[2] * norm(X) + BIAS
    ours = pc.poly_norm(X.astype(np.float32), upstream.from_official(WEIGHT, BIAS))
    np.testing.assert_allclose(ours, official, atol=1e-5)  # float32, terms of order 10


def test_motif_s_gated_poly_norm_takes_the_official_order():
    up = np.random.default_rng(1).normal(size=X.shape)
    theirs = WEIGHT[0] * norm(X**3) + WEIGHT[1] * norm(X**2) + WEIGHT[2] * norm(X) + BIAS
    coeffs = upstream.from_official(WEIGHT, BIAS)
    ours = poly_norm_glu(X.astype(np.float32), up.astype(np.float32), coeffs)
    np.testing.assert_allclose(ours, theirs * up, atol=3e-5)  # float32, terms of order 30


def test_poly_relu_with_official_weights_is_the_official_sum():
    z = np.maximum(X, 0)
    official = WEIGHT[0] * z**3 + WEIGHT[1] * z**2 + WEIGHT[2] * z + BIAS
    ours = pc.poly_relu(X.astype(np.float32), upstream.from_official(WEIGHT, BIAS))
    np.testing.assert_allclose(ours, official, atol=2e-5)  # float32, terms of order 20


@pytest.mark.parametrize("lead", [(), (4,), (4, 2)])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_both_ways_give_back_what_was_given(lead, order):
    coeffs = np.random.default_rng(1).normal(size=(*lead, order + 1)).astype(np.float32)
    weight, bias = upstream.to_official(coeffs)
    assert (weight.shape, bias.shape) == ((*lead, order), (*lead, 1))
    np.testing.assert_array_equal(weight[..., 0], coeffs[..., -1])
    np.testing.assert_array_equal(upstream.from_official(weight, bias), coeffs)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"weight \[3\] and bias \[\]"):
        upstream.from_official(WEIGHT, np.float32(0))
    with pytest.raises(InputError, match=r"order 1 or more, came \[1\]"):
        upstream.to_official(np.zeros(1))
