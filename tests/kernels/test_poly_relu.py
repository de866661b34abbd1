"""PolyReLU and PolyPReLU against float64 NumPy: accuracy, edges, the kink at 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from experiments.benchmark.arg_specs import make_arguments, select
from polycom_jax._errors import InputError
from polycom_jax.kernels.poly_relu import poly_prelu, poly_relu

F32 = 2e-6
FLOOR = 1.2e-38

each_implementation = pytest.mark.parametrize("implementation", ["reference", "xla", "cpu", "gpu"])
pytestmark = pytest.mark.usefixtures("strict_dtypes")


@jax.jit(static_argnames="implementation")
def run(x, coeffs, dy, implementation=None):
    y, vjp = jax.vjp(lambda x, c: poly_relu(x, c, implementation=implementation), x, coeffs)
    return y, *vjp(dy)


def assert_accurate(got, wanted, terms):
    """Within 2e-6 of the terms' sum, each element; in half precision within one rounding more."""
    half_step = float(jnp.finfo(got.dtype).eps) / 2 if got.dtype != jnp.float32 else 0.0
    step = float(jnp.finfo(got.dtype).smallest_subnormal) if half_step else FLOOR
    (got,) = oracles.float64(got)
    assert np.all(np.abs(got - wanted) <= F32 * terms + half_step * np.abs(wanted) + step)


@each_implementation
@pytest.mark.parametrize("spec", select("ci"), ids=lambda spec: spec.name)
def test_value_and_gradients_are_those_of_float64(spec, implementation):
    x, coeffs, dy = make_arguments(spec, jax.random.key(1))
    y, dx, dcoeffs = run(x, coeffs, dy, implementation=implementation)
    assert (y.dtype, dx.dtype, dcoeffs.dtype) == (x.dtype, x.dtype, jnp.float32)
    assert_accurate(y, *oracles.poly_relu(x, coeffs))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_relu_gradients(x, coeffs, dy)
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dcoeffs, exact_dc, dc_terms)


@each_implementation
def test_intermediate_powers_do_not_overflow_the_input_dtype(implementation):
    x = jnp.asarray([6.4, 40.0, 300.0, 6e4, -6e4, 0.0, 6e-8], jnp.float16)
    coeffs = jnp.asarray([0.0, 0.5, 1e-6, 1e-11])
    y, dx, dcoeffs = run(x, coeffs, jnp.ones_like(x) * 1e-3, implementation=implementation)
    chex.assert_tree_all_finite([y, dx, dcoeffs])
    assert_accurate(y, *oracles.poly_relu(x, coeffs))


@each_implementation
def test_a_zero_coefficient_and_a_zero_cotangent_meet_no_infinity(implementation):
    x = jnp.asarray([1e30, 2.0, -1e30, jnp.finfo(jnp.float32).max])
    y, dx, dcoeffs = run(
        x, jnp.asarray([0.5, 1.0, 0.0, 0.0]), jnp.asarray([0.0, 1.0, 1.0, 0.0]),
        implementation=implementation,
    )  # fmt: skip
    np.testing.assert_array_equal(y, jnp.where(x > 0, x + 0.5, 0.5))
    np.testing.assert_array_equal(dx, [0, 1, 0, 0])
    np.testing.assert_array_equal(dcoeffs, [2, 2, 4, 8])


@each_implementation
def test_the_derivative_at_zero_is_zero(implementation):
    dx = run(jnp.zeros(3), jnp.ones(4), jnp.ones(3), implementation=implementation)[1]
    np.testing.assert_array_equal(dx, 0)


@each_implementation
@pytest.mark.parametrize("slope", [0.0, 0.25, -0.5, 2.0])
def test_poly_prelu_is_a_polynomial_of_prelu_with_a_learned_slope(slope, implementation):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 7, 9))
    c = np.array([0.1, 0.5, -0.3, 0.2])
    z = np.where(x > 0, x, slope * x)
    p, dp = (np.polynomial.Polynomial(c), np.polynomial.Polynomial(c).deriv())

    def f(x, c, s):
        return poly_prelu(x, c, s, implementation=implementation)

    y, vjp = jax.vjp(f, *(jnp.asarray(a, jnp.float32) for a in (x, c, slope)))
    dx, dc, dslope = vjp(jnp.asarray(dy, jnp.float32))
    np.testing.assert_allclose(y, p(z), atol=1e-5, rtol=F32)
    np.testing.assert_allclose(dx, dy * dp(z) * np.where(x > 0, 1, slope), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(dc, [np.sum(dy * z**i) for i in range(4)], atol=1e-4)
    np.testing.assert_allclose(dslope, np.sum((dy * dp(z) * x)[x <= 0]), atol=1e-4)


def test_a_slope_of_zero_is_poly_relu():
    x, coeffs = jnp.linspace(-2.0, 2.0, 11), jnp.asarray([0.1, 0.5, -0.3, 0.2])
    np.testing.assert_array_equal(poly_prelu(x, coeffs, 0.0), poly_relu(x, coeffs))


def test_scalars_are_taken_too():
    assert poly_relu(2.0, np.array([0.5, 1.0, 0.25], np.float32)) == 3.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: poly_relu(jnp.ones(3, bool), jnp.ones(4)), "dtype bool must be floating"),
        (lambda: poly_relu(jnp.ones(3), jnp.ones(4, jnp.int32)), "coeffs of dtype int32"),
        (lambda: poly_relu(jnp.ones(3), jnp.ones(1)), r"order \+ 1 >= 2"),
        (lambda: poly_prelu(jnp.ones(3), jnp.ones(4), jnp.ones(2)), r"slope of shape \(2,\)"),
    ],
)
def test_misuse_is_told_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
