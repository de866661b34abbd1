"""Favard's means: the constants, the sharp error on waves, the bound for targets of all kinds."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import chebyshev

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation import favard

pytestmark = pytest.mark.usefixtures("x64")


def knots(x, n: int):
    """A spline with f^(n) = +-1/2 between random knots, where it changes sign; 0 before them."""
    places = jnp.asarray(np.sort(np.random.default_rng(n).random(5)))
    signs = jnp.asarray([1.0, -2.0, 2.0, -2.0, 2.0])
    powers = jnp.maximum(x[:, :1] - places[None], 0) ** n / math.factorial(n)
    return powers @ signs / 2


TARGETS = {
    "shifted power": lambda x, n: jnp.abs(x[:, 0] - 0.3) ** n / math.factorial(n),
    "random knots": knots,
    "oscillating": lambda x, n: jnp.sin(40 * x[:, 0]) / 40**n,
    "runge-like": lambda x, n: 1 / (1 + 25 * (2 * x[:, 0] - 1) ** 2) / (10**n * math.factorial(n)),
}
"""In the unit ball of W^{n,inf}([0, 1]); of none of the kinds that the module offers."""


def error(f, table: np.ndarray) -> float:
    x = np.linspace(0, 1, 5001)
    return float(np.abs(chebyshev.chebval(2 * x - 1, table) - np.asarray(f(x[:, None]))).max())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_constants_and_multipliers_are_the_series_they_stand_for(n: int):
    known = {1: math.pi / 2, 2: math.pi**2 / 8, 3: math.pi**3 / 24, 4: 5 * math.pi**4 / 384}
    assert pa.favard_constant(n) == pytest.approx(known.get(n, math.pi**5 / 240), rel=1e-9)
    stirling = {1: [1], 2: [1, 1], 3: [1, 3, 1], 4: [1, 7, 6, 1], 5: [1, 15, 25, 10, 1]}[n]
    assert favard.chain_constant(n) == sum(s / 2.0 ** (k + 1) for k, s in enumerate(stirling))
    degree, m = 7, np.arange(1, 200_001)
    for k in range(1, degree):
        t, sign = k / (2 * degree), (-1.0) ** m if n % 2 == 0 else np.ones(len(m))
        below = (-1.0) ** n * np.abs(t - m) ** -float(n)
        series = t**n * (t**-n + np.sum(sign * ((m + t) ** -float(n) + below)))
        assert favard.multipliers(n, degree)[k] == pytest.approx(series, abs=1e-5)  # the tail


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("degree", [3, 8])
def test_the_constant_is_attained_by_the_perfect_spline(n: int, degree: int):
    # The periodic function whose n-th derivative is the sign of a wave of that frequency.
    t, odd = np.linspace(0, 2 * np.pi, 4001), 2 * np.arange(4000) + 1
    signs = (-1.0) ** (np.arange(4000) * (n + 1))
    spline = 4 / np.pi * (signs / odd ** (n + 1.0)) @ np.cos(degree * odd[:, None] * t)
    # Its frequencies are multiples of N, so that nothing of it is left: the error is its size.
    assert np.abs(spline).max() == pytest.approx(pa.favard_constant(n), rel=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TARGETS)
def test_errors_are_within_the_bound_for_the_unit_ball(n: int, name: str):
    def f(x):
        return TARGETS[name](x, n)

    for degree in (1, 2, 5, 16, 40):
        table = pa.favard_means(f, n, 1, degree)
        assert error(f, table) <= pa.favard_bound(n, 1, degree)


def test_the_second_variable_adds_its_error_times_the_norm_of_the_means():
    one = pa.favard_constant(3) * favard.chain_constant(3) * 4.0**-3
    # What sampling adds is no millionth of it.
    assert pa.favard_bound(3, 1, 4) == pytest.approx(one, rel=1e-5)
    both = one * (1 + favard.operator_norm(3, 4))
    assert pa.favard_bound(3, 2, 4) == pytest.approx(both, rel=1e-4)


def test_sampling_adds_what_interpolation_at_all_nodes_is_off_by_times_the_norm():
    # Of 2^20 samples each axis has 1024; with one derivative their error is the larger part.
    one, norm = pa.favard_constant(1) * favard.chain_constant(1), favard.operator_norm(1, 64)
    lebesgue = 1 + 2 / math.pi * 10 * math.log(2)
    sampled = (1 + lebesgue) ** 2 * one / 1024
    whole = one / 64 * (1 + norm) + norm**2 * sampled
    assert pa.favard_bound(1, 2, 64) == pytest.approx(whole, rel=1e-9)
    assert norm**2 * sampled > whole / 2


def test_the_norm_of_the_means_is_bounded_from_above_and_closely():
    for n in (1, 2, 5):
        for degree in (1, 6, 30):
            weights = favard.multipliers(n, degree)
            t = np.linspace(0, 2 * np.pi, 20_011)[:-1]
            kernel = 1 + 2 * weights[1:] @ np.cos(np.arange(1, degree)[:, None] * t)
            mean = float(np.abs(kernel).mean())
            assert mean * (1 - 1e-3) <= favard.operator_norm(n, degree) <= 1.02 * mean


def test_coefficients_of_values_are_those_of_their_series():
    table = np.random.default_rng(0).normal(size=(3, 16))
    t = np.pi * (np.arange(16) + 0.5) / 16
    values = table @ np.cos(np.arange(16)[:, None] * t)
    np.testing.assert_allclose(favard.cosine_coefficients(values), table, atol=1e-14)


def test_two_variables_are_done_one_after_the_other():
    def f(x):
        return jnp.cos(jnp.arccos(2 * x[:, 0] - 1) * 2) * (2 * x[:, 1] - 1)

    table = pa.favard_means(f, 2, 2, 4)
    weights = favard.multipliers(2, 4)
    expected = np.zeros((4, 4))
    expected[2, 1] = weights[2] * weights[1]
    np.testing.assert_allclose(table, expected, atol=1e-13)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="n=0"):
        pa.favard_constant(0)
    with pytest.raises(InputError, match="samples on each axis"):
        pa.favard_bound(2, 2, 1000)
    with pytest.raises(InputError, match="finite"):
        pa.favard_means(lambda x: jnp.log(x[:, 0] - 0.5), 2, 1, 4)
    with pytest.raises(InputError, match="values"):
        pa.favard_means(lambda x: x, 2, 1, 4)


def test_the_constant_for_one_derivative_is_nearly_reached_in_the_unit_ball():
    # polynorm_theorem.md: the worst error at x = 1/2, by the kernel R of g - A g = R * g'.
    degree, count = 64, 20_000
    k, s = np.arange(1, degree), (np.arange(count) + 0.5) * math.pi / count
    taken = favard.multipliers(1, degree)[1:] / k

    def kernel(u):
        u = np.mod(u, 2 * math.pi)
        waves = sum(
            share * np.sin(frequency * u) for share, frequency in zip(taken, k, strict=True)
        )
        return ((math.pi - u) / 2 - waves) / math.pi

    differences = np.abs(kernel(math.pi / 2 - s) - kernel(math.pi / 2 + s))
    worst = np.sum(differences * np.sin(s)) / 2 * math.pi / count
    constant = favard.favard_constant(1) * favard.chain_constant(1)
    assert constant == pytest.approx(math.pi / 4)
    assert 0.985 < worst * degree / constant < 1
