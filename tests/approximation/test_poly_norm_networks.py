"""PolyNorm networks: what they compute, within which bounds, and what is refused."""

import math
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import chebyshev
from plain_networks import random_network

from polycom_jax import InputError
from polycom_jax import approximation as pa

pytestmark = pytest.mark.usefixtures("x64")

START = (0.0, 1 / 3, 1 / 3, 1 / 3)
WITH_BIAS = (0.2, -0.5, -0.7, 0.1)


def by_hand(net: pa.PolyNormNetwork, x: np.ndarray) -> np.ndarray:
    """The network without the code under test: the formula of PolyNorm, row by row."""
    z = x @ net.entry.T + net.shift
    for layer, coeffs in enumerate(net.coeffs):
        powers = [
            c * z**i / np.sqrt(np.mean(z ** (2 * i), axis=1, keepdims=True) + net.eps)
            for i, c in enumerate(coeffs[1:], 1)
        ]
        y = coeffs[0] + sum(powers)
        z = y @ (net.readout if layer == net.depth - 1 else net.weights[layer]).T
    return z + net.offset


def wave(x):
    return jnp.prod(jnp.sin(2 * x + 1), axis=1) / 8


def series(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    y = 2 * x.T - 1
    return {1: chebyshev.chebval, 2: chebyshev.chebval2d, 3: chebyshev.chebval3d}[len(y)](*y, table)


@pytest.mark.parametrize("coeffs", [pa.SQUARE, START, WITH_BIAS])
@pytest.mark.parametrize(("d", "degree"), [(1, 1), (1, 2), (1, 9), (2, 4), (3, 3)])
def test_a_network_is_its_polynomial_one_coefficient_a_layer(coeffs, d: int, degree: int):
    net = pa.poly_norm_network(wave, 3, d, degree, coeffs=coeffs, peak=1e3)
    single = coeffs == pa.SQUARE
    assert net.depth == degree**d
    assert net.width == (1 if single else 2) * (6 * d + 1) + (coeffs[0] != 0)
    x = np.random.default_rng(0).random((50, d))
    x[:2] = np.array([[0.0], [1.0]])
    wanted = series(pa.favard_means(wave, 3, d, degree), x)
    found = np.asarray(pa.evaluate_normed(net, x))[:, 0]
    peaks = 114 * d / (2 * 1e3**4) * np.abs(wanted - net.offset).max()
    # The peak's share, and roundings: those of a bias are the peak's square as large.
    lost = {pa.SQUARE: 1e2, START: 1e6, WITH_BIAS: 1e9}[coeffs] * np.finfo(float).eps
    np.testing.assert_allclose(found, wanted, rtol=0, atol=lost + peaks)
    np.testing.assert_allclose(by_hand(net, x)[:, 0], found, atol=10 * lost)


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_epsilon_does_not_matter(eps: float):
    x = np.random.default_rng(1).random((50, 1))
    net = pa.poly_norm_network(wave, 3, 1, 12, eps=eps)
    wanted = series(pa.favard_means(wave, 3, 1, 12), x)
    np.testing.assert_allclose(pa.evaluate_normed(net, x)[:, 0], wanted, atol=1e-13)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_errors_are_within_the_bound_and_weights_within_theirs(n: int, d: int):
    for name in ("spline", "random"):
        target = pa.get_target(name, order=n, dim=d)
        for degree in (2, 9):
            net = pa.poly_norm_network(target, n, d, degree, peak=100.0)
            x = np.random.default_rng(degree).random((300, d))
            error = np.abs(np.asarray(pa.evaluate_normed(net, x))[:, 0] - target(jnp.asarray(x)))
            assert float(error.max()) <= pa.poly_norm_bound(n, d, degree, peak=100.0)
            assert np.abs(net.weights[:-1]).max(initial=0) <= 2
            assert np.abs(net.weights).max() <= 2 * 100.0


def test_the_peaks_share_of_the_error_is_within_its_part_of_the_bound():
    x = np.random.default_rng(2).random((200, 1))
    wanted = series(pa.favard_means(wave, 3, 1, 12), x)
    for coeffs in (pa.SQUARE, START):
        net = pa.poly_norm_network(wave, 3, 1, 12, coeffs=coeffs, peak=10.0, eps=1e-4)
        error = np.abs(np.asarray(pa.evaluate_normed(net, x))[:, 0] - wanted).max()
        means = pa.favard_bound(3, 1, 12)
        share = pa.poly_norm_bound(3, 1, 12, coeffs=coeffs, peak=10.0, eps=1e-4) - means
        assert 1e-3 * share < error <= share
    # With next to no epsilon: 114, the fourth powers' sum, by twice that of the peak.
    share = pa.poly_norm_bound(3, 1, 12, peak=10.0, eps=1e-12) - means
    assert share == pytest.approx((2 + means) * 114 / (2 * 10.0**4), rel=1e-6)


def test_the_wanted_error_gives_the_least_degree():
    net = pa.poly_norm_network(wave, 2, 1, error=1e-2)
    assert pa.favard_bound(2, 1, net.depth) <= 1e-2 < pa.favard_bound(2, 1, net.depth - 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrower_dtypes_give_the_same_function(dtype):
    net = pa.poly_norm_network(wave, 3, 1, 8, peak=100.0)
    x = np.random.default_rng(3).random((50, 1))
    found = pa.evaluate_normed(net, jnp.asarray(x, dtype))
    assert found.dtype == dtype
    seen = np.asarray(jnp.asarray(x, dtype).astype(float))
    few = 4 * net.depth * float(jnp.finfo(dtype).eps)  # roundings a layer
    np.testing.assert_allclose(found.astype(float), pa.evaluate_normed(net, seen), atol=few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"degree": None}, "one of degree and error"),
        ({"error": 0.1}, "one of degree and error"),
        ({"coeffs": (0.0, 1.0)}, "c_2"),
        ({"coeffs": (0.0, 1.0, 0.0, 1.0)}, "c_2 not 0"),
        ({"coeffs": (0.0, 0.0, 1.0, 0.0, 1.0)}, "c_3"),
        ({"peak": 1.0}, "peak=1.0"),
        ({"eps": 0.1}, "eps=0.1 must be at most"),
        ({"eps": 0.0}, "eps=0.0 must be above 0"),
        ({"eps": -1.0}, "eps=-1.0 must be above 0"),
        ({"degree": 0}, "N=0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message: str):
    given = {"n": 2, "d": 1, "degree": 4} | arguments
    with pytest.raises(InputError, match=message):
        pa.poly_norm_network(wave, **given)


def test_points_of_another_dimension_are_refused():
    net = pa.poly_norm_network(wave, 2, 1, 4)
    with pytest.raises(InputError, match="last axis of 1"):
        pa.evaluate_normed(net, np.zeros((3, 2)))


def test_the_square_beside_the_line_is_the_absolute_value_up_to_one():
    # The inequality of the proof, for all that a row may carry.
    t = np.logspace(-4, 6, 4001)
    for carried in (0.0, 0.3, 1.0):
        for fourth in (1.0, 1 + carried**2, 1 + carried):
            squares = 1 + carried
            if fourth <= squares:
                h = t**2 * np.sqrt((squares + t**2) / (fourth + t**4))
                assert np.abs(h - t).max() <= 1


RELU_AND_Y = partial(
    pa.feed_forward,
    [[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [[1.0, 1.0, -1.0]]],
    [None, None],
    [[[0.0, 1.0]] * 3],
)

IMITATED = {
    "relu(x) + y": (RELU_AND_Y, 17, 4),
    "affine": (partial(pa.linear, [[2.0, 1.0]], [0.5]), 13, 1),
    "ReLU, two layers": (partial(random_network, 0, 2, 4, 3, 2, order=1), 21, 8),
    "PolyReLU, two layers": (partial(random_network, 1, 2, 3, 2, 1), 17, 16),
    "quadratics": (partial(pa.quadratic_iterate, 2), 13, 9),
}


@pytest.mark.parametrize("name", IMITATED)
def test_imitations_are_within_the_error_asked_for(name: str):
    make, width, depth = IMITATED[name]
    net = make()
    x = np.random.default_rng(4).uniform(-1, 1, (2000, net.inputs))
    x[:200] *= 1e-3
    x[0] = 0
    wanted = np.asarray(pa.evaluate(net, x))
    for error in (1e-1, 1e-3, 1e-5):
        made = pa.poly_norm_imitation(net, error)
        assert (made.width, made.depth) == (width, depth)
        assert np.abs(np.asarray(pa.evaluate_normed(made, x)) - wanted).max() <= error


def test_the_error_of_a_relu_falls_with_the_weights_and_not_sooner():
    relu = pa.feed_forward([[[1.0]], [[1.0]]], [None, None], [[[0.0, 1.0]]])
    x = np.linspace(-1, 1, 20_001)[:, None]
    errors = []
    for error in (1e-2, 1e-3, 1e-4):
        made = pa.poly_norm_imitation(relu, error)
        found = np.asarray(pa.evaluate_normed(made, x))
        errors.append(float(np.abs(found - np.maximum(x, 0)).max()) / error)
    assert max(errors) <= 1
    assert max(errors) < 2 * min(errors)  # proportional to 1 / L


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"error": 0.0}, "error=0.0"),
        ({"radius": -1.0}, "radius=-1.0"),
        ({"peak": math.inf}, "peak=inf"),
        ({"eps": 0.5}, "eps=0.5"),
    ],
)
def test_imitations_that_cannot_be_are_refused(arguments, message: str):
    with pytest.raises(InputError, match=message):
        pa.poly_norm_imitation(RELU_AND_Y(), **({"error": 1e-2} | arguments))


def test_a_network_is_a_pytree_of_its_numbers():
    net = pa.poly_norm_network(wave, 2, 1, 4)
    arrays = (net.entry, net.shift, net.weights, net.coeffs, net.readout, net.offset)
    assert net.size == sum(np.count_nonzero(a) for a in arrays)
    assert net.largest_weight == max(np.abs(a).max() for a in arrays[:3] + arrays[4:])
    moved = replace(net, offset=net.offset + 1)
    x = np.zeros((1, 1))
    np.testing.assert_allclose(pa.evaluate_normed(moved, x), pa.evaluate_normed(net, x) + 1)
