"""The plain definitions of PolyCom's relatives, by their relations to the two main ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax._errors import InputError
from polycom_jax.activations import (
    poly_norm,
    poly_norm_glu,
    poly_prelu,
    poly_relu,
    poly_relu_norm,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")
COEFFS = jnp.asarray([0.5, 1.0, -2.0, 0.25])


def test_poly_prelu_lies_between_poly_relu_and_the_plain_polynomial():
    x = jnp.linspace(-2.0, 2.0, 9)
    np.testing.assert_array_equal(poly_prelu(x, COEFFS, 0.0), poly_relu(x, COEFFS))
    plain = np.polynomial.polynomial.polyval(np.asarray(x), np.asarray(COEFFS))
    np.testing.assert_allclose(poly_prelu(x, COEFFS, 1.0), plain, rtol=1e-5)


def test_poly_relu_norm_leaves_a_row_of_negative_numbers_at_the_bias():
    x = jnp.asarray([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
    y = poly_relu_norm(x, COEFFS)
    np.testing.assert_array_equal(y[0], 0.5)
    np.testing.assert_allclose(y[1], poly_norm(x[1], COEFFS), rtol=1e-6)


def test_a_gate_of_zeros_lets_the_bias_through():
    up = jnp.asarray([1.0, -2.0, 3.0])
    np.testing.assert_allclose(poly_norm_glu(jnp.zeros(3), up, COEFFS), 0.5 * up)


def test_the_gradient_of_the_gate_product_reaches_all_three():
    gate, up = jnp.asarray([1.0, -2.0, 3.0]), jnp.asarray([0.3, 0.2, 0.1])
    gradients = jax.grad(lambda *a: poly_norm_glu(*a).sum(), range(3))(gate, up, COEFFS)
    np.testing.assert_allclose(gradients[1], poly_norm(gate, COEFFS), rtol=1e-6)
    assert all(bool(jnp.all(g != 0)) for g in gradients)


def test_misuse_is_told_in_one_line():
    with pytest.raises(InputError, match="must agree in shape"):
        poly_norm_glu(jnp.ones(3), jnp.ones((2, 3)), COEFFS)
    with pytest.raises(InputError, match="must be a scalar"):
        poly_prelu(jnp.ones(3), COEFFS, jnp.ones(3))
    with pytest.raises(InputError, match="gate of shape"):
        poly_norm_glu(jnp.ones(()), jnp.ones(()), COEFFS)
