"""The plain definitions: values one can check by hand, the relations between the forms."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from polycom_jax._errors import InputError
from polycom_jax.activations import init_coeffs, poly_norm, poly_relu, polycom
from polycom_jax.activations.polynomial import horner, scale_row

pytestmark = pytest.mark.usefixtures("strict_dtypes")
COEFFS = jnp.asarray([0.5, 1.0, -2.0, 0.25])


def norm(u):
    return u * jax.lax.rsqrt(jnp.mean(u * u, axis=-1, keepdims=True) + jnp.float32(1e-6))


@pytest.mark.parametrize("order", [1, 2, 3, 7])
def test_initial_coefficients_are_zero_and_then_one_over_the_order(order):
    coeffs = init_coeffs(order)
    assert coeffs.dtype == jnp.float32
    np.testing.assert_array_equal(coeffs, np.float32([0] + [1 / order] * order))


@pytest.mark.parametrize("order", [0, -1, 2.5, True])
def test_an_order_that_is_no_positive_integer_is_refused(order):
    with pytest.raises(InputError, match="must be an integer of at least 1"):
        init_coeffs(order)


def test_values_computed_by_hand():
    x = jnp.asarray([3.0, -1.0])
    np.testing.assert_allclose(poly_relu(x, COEFFS), [0.5 + 3 - 18 + 6.75, 0.5])
    # The means of x^2, x^4, x^6 are 5, 41, 365.
    third = 0.25 / np.sqrt(365) * np.array([27, -1])
    wanted = 0.5 + np.array([3, -1]) / np.sqrt(5) - 2 * np.array([9, 1]) / np.sqrt(41) + third
    np.testing.assert_allclose(poly_norm(x, COEFFS), wanted, rtol=1e-6)


def test_poly_relu_and_poly_norm_are_the_two_types_of_composition():
    x = jax.random.normal(jax.random.key(0), (4, 32))
    np.testing.assert_allclose(polycom(x, COEFFS, jax.nn.relu), poly_relu(x, COEFFS), rtol=1e-6)
    type2 = polycom(x, COEFFS, norm, kind="type2")
    np.testing.assert_allclose(type2, poly_norm(x, COEFFS), atol=1e-5)


def test_both_types_agree_where_rho_is_multiplicative_and_differ_elsewhere():
    x = jnp.linspace(-2.0, 2.0, 9)
    same = [polycom(x, COEFFS, jnp.abs, kind=kind) for kind in ("type1", "type2")]
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    other = [polycom(x, COEFFS, jnp.tanh, kind=kind) for kind in ("type1", "type2")]
    assert float(jnp.max(jnp.abs(other[0] - other[1]))) > 0.1


@pytest.mark.parametrize("kind", ["type1", "type2"])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_any_order_and_any_rho(order, kind):
    x = np.random.default_rng(order).standard_normal((3, 8))
    c = np.random.default_rng(order + 10).standard_normal(order + 1)
    terms = [(np.tanh(x) ** i if kind == "type1" else np.tanh(x**i)) for i in range(1, order + 1)]
    wanted = c[0] + sum(a * t for a, t in zip(c[1:], terms, strict=True))
    y = polycom(jnp.asarray(x, jnp.float32), jnp.asarray(c, jnp.float32), jnp.tanh, kind=kind)
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_rho_sees_the_work_dtype_and_the_result_is_rounded_once():
    seen = []
    x = jnp.asarray([0.1, 6.4, 60.0], jnp.float16)
    y = polycom(x, COEFFS, lambda z: (seen.append(z.dtype), z)[1], kind="type2")
    assert seen == [jnp.float32] * 3
    exact = np.polynomial.polynomial.polyval(oracles.float64(x)[0], np.array(COEFFS, np.float64))
    np.testing.assert_allclose(oracles.float64(y)[0], exact, rtol=2**-11 * 1.001)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'type2'"):
        polycom(jnp.ones(2), COEFFS, jnp.tanh, kind="typ2")  # pyright: ignore[reportArgumentType]


def test_horner_does_not_overflow_where_the_value_does_not():
    z = jnp.float32([1e19, 3e12, 0.5])
    coeffs = jnp.float32([1.0, 1.0, 1e-19, 2e-38, 0.0])
    wanted, _ = oracles.poly_relu(z, coeffs)
    np.testing.assert_allclose(horner(z, coeffs), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [
        (0.0, 0), (1e-40, 0), (0.75, 0), (1.0, 0), (1.99, 0), (2.0, 1), (3.0, 1), (1e6, 19),
        (np.nextafter(np.float32(2**20), np.float32(0)), 19), (2.0**126, 126), (2.0**127, 126),
        (3.4028235e38, 126),
    ],
)  # fmt: skip
def test_the_scale_is_the_power_of_two_under_the_largest_element(largest, exponent):
    x = jnp.float32([[largest, -largest, 0.0]])
    z, scale = scale_row(x)
    assert float(scale[0, 0]) == 2.0**-exponent
    exact = oracles.float64(x)[0] * 2.0**-exponent
    np.testing.assert_array_equal(z, np.where(np.abs(exact) < 1.2e-38, 0, exact))


def test_the_scale_has_no_gradient_and_does_not_show_in_the_first_two_derivatives():
    gradient = jax.grad(lambda x: jnp.sum(scale_row(x)[1]))
    np.testing.assert_array_equal(gradient(jnp.float32([[3.0, 5.0, 100.0]])), 0)

    def loss(x):  # of degree 0 in x, so its gradient halves and its Hessian quarters as x doubles
        return jnp.sum(jnp.sin(poly_norm(x, COEFFS)))

    x = jnp.float32([1.9, -0.3, 0.7])
    for degree, derivative in ((1, jax.grad(loss)), (2, jax.hessian(loss))):
        derivative = jax.jit(derivative)
        doubled = derivative(2 * x) * 2**degree
        np.testing.assert_allclose(doubled, derivative(x), rtol=1e-4, atol=1e-5)
