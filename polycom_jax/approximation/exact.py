"""What PolyReLU networks represent without error: Lemma 1, Theorem 1, products (arXiv 2411.03884).

The identities hold for all real numbers. In floating point they hold up to rounding, relative to
the largest intermediate: a product of many factors of different size loses digits by cancellation.
"""

import math
from collections.abc import Sequence

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.combine import compose, identity
from polycom_jax.approximation.network import Matrix, Network, Vector, ascending, feed_forward
from polycom_jax.approximation.product_tree import Arithmetic, monomials

SUMS = ((1.0, 1.0), (-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0))
"""(u, v) to u + v, its negative, u - v and its negative. Of nonnegative u and v, relu of the second
is 0, and that unit is left out."""


def power(exponent: int) -> Network:
    """x -> relu(x)^exponent by one unit (Lemma 1): relu for 1, squared ReLU for 2.

    Raises:
        InputError: an exponent below 1.
    """
    require(exponent >= 1, f"exponent={exponent} must be at least 1.")
    return feed_forward([[[1.0]], [[1.0]]], [None, None], [np.eye(exponent + 1)[-1:]])


def polynomial(coeffs: Vector) -> Network:
    """x -> sum_k coeffs[k] x^k by two units (Lemma 1), exact on all of R.

    x^k = relu(x)^k + (-1)^k relu(-x)^k, so the units see x and -x, and have the coefficients c_k
    and (-1)^k c_k; the constant stands in one of them.

    Raises:
        InputError: fewer than two coefficients.
    """
    right = ascending(coeffs)
    left = right * (-1.0) ** np.arange(len(right))
    left[0] = 0
    return feed_forward(
        [[[1.0], [-1.0]], [[1.0, 1.0]]],
        [None, None],
        [np.stack([right, left])],
        smoothness=math.inf,
    )


def relu_network(
    weights: Sequence[Matrix], biases: Sequence[Vector | None], *, order: int = 1
) -> Network:
    """A ReLU network of any shape as a PolyReLU network of the same shape (Theorem 1), exactly.

    Every unit gets a_1 = 1 and a_i = 0 else, so one set of coefficients serves a whole layer, and
    the size grows by one nonzero coefficient a unit.

    Args:
        weights: one matrix [out, in] a hidden layer, and the readout's.
        biases: one vector [out] each, or None.
        order: r >= 1, so that all units have r + 1 coefficients.

    Raises:
        InputError: an order below 1, or shapes that do not fit each other.
    """
    require(order >= 1, f"order={order} must be at least 1.")
    require(len(weights) >= 1, "a network needs at least the readout's matrix.")
    unit = np.eye(order + 1)[1]
    coeffs = [np.tile(unit, (len(w), 1)) for w in weights[:-1]]
    return feed_forward(weights, biases, coeffs)


def exact_arithmetic(*, nonnegative: bool = False) -> Arithmetic:
    """Products, squares and carries by one layer of PolyReLU units of order 2, without error.

    u v = ((u + v)^2 - (u - v)^2) / 4, where x^2 = relu(x)^2 + relu(-x)^2: four units, or three
    where nothing is negative. This is why PolyReLU networks need no logarithm in Theorem 3.

    Args:
        nonnegative: whether all numbers to be multiplied are >= 0. The networks are then exact for
            such numbers alone, and only as smooth elsewhere as their units are.
    """
    square_unit, linear_unit = (0.0, 0.0, 1.0), (0.0, 1.0)
    rows = [row for row in SUMS if not (nonnegative and max(row) < 0)]
    signs = [row[0] * row[1] / 4 for row in rows]
    sides = [[1.0]] if nonnegative else [[1.0], [-1.0]]

    def one_layer(weights: Matrix, unit: tuple[float, ...], readout: list[float]) -> Network:
        units = np.tile(unit, (len(weights), 1))
        smoothness = None if nonnegative else math.inf
        return feed_forward([weights, [readout]], [None, None], [units], smoothness=smoothness)

    return Arithmetic(
        product=one_layer(rows, square_unit, signs),
        square=one_layer(sides, square_unit, [1.0] * len(sides)),
        carry=one_layer(sides, linear_unit, [1.0]) if nonnegative else identity(1),
        error=0.0,
    )


def product(factors: int) -> Network:
    """(x_1, ..., x_k) -> x_1 ... x_k by a binary tree of ceil(log2 k) layers, exact on R^k.

    Raises:
        InputError: no factors.
    """
    require(factors >= 1, f"factors={factors} must be at least 1.")
    return monomials([(1,) * factors], exact_arithmetic())


def square() -> Network:
    """x -> x^2 by two units, exact on R."""
    return exact_arithmetic().square


def quadratic_iterate(times: int) -> Network:
    """x -> the `times`-fold composition of q(x) = 1 - 2 x^2, which maps [-1, 1] onto itself.

    A polynomial of degree 2^times with 2^times monotone pieces, at 2 units a layer: what ReLU
    networks of bounded size imitate worst (Theorem 2).

    Raises:
        InputError: times below 1.
    """
    require(times >= 1, f"times={times} must be at least 1.")
    one = polynomial((1.0, 0.0, -2.0))
    net = one
    for _ in range(times - 1):
        net = compose(one, net)
    return net
