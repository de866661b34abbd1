"""Networks of one hidden layer of relu^(n-1)."""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax import approximation as pa

pytestmark = pytest.mark.usefixtures("x64")

X = np.linspace(0, 1, 4001)[:, None]


def gap(net: pa.Network, f) -> np.ndarray:
    return np.abs(np.asarray(pa.evaluate(net, X))[:, 0] - np.asarray(f(jnp.asarray(X))))


def alternating(n: int, cells: int):
    """f^(n) is 1 and -1 by turns, from cell to cell: Euler's perfect spline, away from the ends."""
    knots, signs = np.arange(1, cells) / cells, (-1.0) ** np.arange(1, cells)

    def f(x):
        bends = jnp.maximum(x - knots[None], 0) ** n @ (2 * signs)
        return (x[:, 0] ** n + bends) / math.factorial(n)

    return f


ORDERS = [2, 3, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 8))]


@pytest.mark.parametrize("n", ORDERS)
@pytest.mark.parametrize("name", ["waves", "runge", "spline"])
def test_errors_stay_below_the_bound(name: str, n: int):
    target = pa.get_target(name, order=n, dim=1)
    for cells in (1, 7, 64):
        net = pa.spline_network(target, n, cells)
        rounding = 16 * np.finfo(float).eps * net.largest_weight
        assert gap(net, target).max() <= pa.spline_bound(n, cells) + rounding


@pytest.mark.parametrize(("n", "constant"), [(2, 1 / 8), (3, 1 / 24), (4, 5 / 384), (5, 1 / 240)])
def test_the_constant_is_attained(n: int, constant: float):
    cells = 40
    assert pa.spline_bound(n, cells) == pytest.approx(constant * cells**-n, rel=1e-9)
    f = alternating(n, cells)
    inside = (X[:, 0] > 0.4) & (X[:, 0] < 0.6)  # the ends are not felt there
    worst = gap(pa.spline_network(f, n, cells), f)[inside].max()
    assert worst == pytest.approx(constant * cells**-n, rel=2e-3)  # of the grid


@pytest.mark.parametrize("n", [2, 3, 5])
def test_one_power_of_relu_in_one_layer(n: int):
    net = pa.spline_network(pa.get_target("waves", order=n, dim=1), n, 9)
    assert net.depth == 1
    assert net.width == 9 + n - 2
    assert net.size == 4 * net.width
    assert net.smoothness == n - 1
    (layer,) = net.layers
    np.testing.assert_array_equal(layer.coeffs[0], np.tile(np.eye(n)[-1], (net.width, 1)))


def test_for_two_derivatives_it_is_the_linear_interpolant():
    target = pa.get_target("runge", order=2, dim=1)
    spline, chords = pa.spline_network(target, 2, 12), pa.linear_interpolant(target, 12)
    np.testing.assert_allclose(pa.evaluate(spline, X), pa.evaluate(chords, X), rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_polynomials_of_degree_below_n_are_met_exactly(n: int):
    def f(x):
        return (x[:, 0] - 0.3) ** (n - 1) - x[:, 0]

    assert gap(pa.spline_network(f, n, 10), f).max() < 1e-13


def test_weights_do_not_grow_with_the_cells():
    target = pa.get_target("random", order=3, dim=1)
    few, many = (pa.spline_network(target, 3, cells) for cells in (10, 2000))
    assert many.largest_weight <= max(2 * few.largest_weight, 1.0)


def test_the_numbers_are_linear_in_the_target():
    waves, runge = (pa.get_target(name, order=3, dim=1) for name in ("waves", "runge"))
    parts = [pa.spline_network(f, 3, 10).readout.weights for f in (waves, runge)]
    both = pa.spline_network(lambda x: waves(x) + runge(x), 3, 10).readout.weights
    np.testing.assert_allclose(both, sum(parts), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("n", "cells", "message"),
    [(1, 8, "from 2 to 8"), (9, 8, "from 2 to 8"), (2, 0, "N=0"), (8, 1000, "no finer grain")],
)
def test_what_it_cannot_build_is_refused(n: int, cells: int, message: str):
    with pytest.raises(InputError, match=message):
        pa.spline_network(lambda x: x[:, 0], n, cells)


def test_the_largest_weight_is_of_every_part():
    net = pa.spline_network(pa.get_target("waves", order=3, dim=1), 3, 4)
    assert net.largest_weight == 1.0  # of the first layer
    bias = replace(net.readout, biases=np.array([[-7.0]]))
    assert replace(net, readout=bias).largest_weight == 7.0
