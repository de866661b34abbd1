import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain

from polycom_jax import InputError
from polycom_jax import approximation as pa

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(200, 1)) * 3


@pytest.mark.parametrize("exponent", [1, 2, 3, 5])
def test_one_unit_is_a_power_of_relu(exponent: int):
    net = pa.power(exponent)
    assert (net.size, net.smoothness) == (3, exponent)
    assert distance(plain(net, X), np.maximum(X, 0) ** exponent) < ROUNDING


@pytest.mark.parametrize("degree", [1, 2, 3, 6])
def test_two_units_are_any_polynomial_on_the_whole_line(degree: int):
    coeffs = DRAW.normal(size=degree + 1)
    net = pa.polynomial(coeffs)
    assert (net.width, net.depth) == (2, 1)
    assert distance(plain(net, X), np.polynomial.polynomial.polyval(X, coeffs)) < ROUNDING


@pytest.mark.parametrize("widths", [(3, 1), (2, 7, 1), (4, 5, 1, 6, 2)])
@pytest.mark.parametrize("order", [1, 3])
def test_relu_networks_of_any_shape_are_polyrelu_networks_of_that_shape(widths, order: int):
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [DRAW.normal(size=shape) for shape in shapes]
    biases = [DRAW.normal(size=made) for made, _ in shapes]
    net = pa.relu_network(weights, biases, order=order)
    h = x = DRAW.normal(size=(50, widths[0]))
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        h = np.maximum(h @ w.T + b, 0)
    assert distance(plain(net, x), h @ weights[-1].T + biases[-1]) < ROUNDING
    assert (net.depth, net.width) == (len(widths) - 2, max(widths[1:-1], default=0))
    assert net.size == sum(w.size + len(w) for w in weights) + sum(widths[1:-1])


@pytest.mark.parametrize("factors", [1, 2, 3, 5, 8])
def test_products_are_exact_and_logarithmically_deep(factors: int):
    x = DRAW.normal(size=(200, factors))
    net = pa.product(factors)
    assert net.depth == int(np.ceil(np.log2(factors)))
    assert distance(plain(net, x)[:, 0], x.prod(1)) < ROUNDING


@pytest.mark.parametrize("nonnegative", [False, True])
def test_exact_arithmetic_is_exact(nonnegative: bool):
    how, u = pa.exact_arithmetic(nonnegative=nonnegative), DRAW.normal(size=(100, 2))
    u = np.abs(u) if nonnegative else u
    assert how.product.width == 3 + (not nonnegative)
    assert distance(plain(how.product, u)[:, 0], u.prod(1)) < ROUNDING
    assert distance(plain(how.square, u[:, :1]), u[:, :1] ** 2) < ROUNDING
    assert np.array_equal(plain(how.carry, u[:, :1]), u[:, :1])


def test_products_of_nonnegative_numbers_are_no_smoother_than_their_units():
    how = pa.exact_arithmetic(nonnegative=True)
    assert how.product.smoothness == 2
    assert pa.monomials([(1, 2)], how).smoothness == 1  # one factor is carried by a ReLU
    with pytest.raises(InputError, match="for k <= 2 only"):
        pa.sobolev_norm(how.product, pa.Grid(2, 1), order=3)


def test_a_quadratic_iterate_is_a_chebyshev_polynomial():
    # 1 - 2 x^2 = -T_2(x), and T_2 of T_m is T_2m; T_2 is even, so signs inside do not matter.
    x = np.linspace(-1, 1, 200)[:, None]
    expected = -np.cos(2**4 * np.arccos(x))
    assert distance(plain(pa.quadratic_iterate(4), x), expected) < 1e-9  # 4^4 times rounding


def test_numbers_out_of_range_are_refused():
    for wrong in (
        lambda: pa.power(0),
        lambda: pa.polynomial([1.0]),
        lambda: pa.product(0),
        lambda: pa.quadratic_iterate(0),
        lambda: pa.relu_network([], []),
        lambda: pa.relu_network([np.eye(1)], [None], order=0),
    ):
        with pytest.raises(InputError):
            wrong()
