"""Squares and products by ReLU networks, with stated error (Yarotsky 2017, Telgarsky 2017).

f_m interpolates x^2 on [0, 1] at the multiples of 2^-m:  f_m = x - sum_{s=1..m} g_s / 4^s, with the
tooth g(x) = 2 relu(x) - 4 relu(x - 1/2) iterated s times. It has exactly 2^m pieces, and
0 <= f_m(x) - x^2 <= 4^-(m+1): the error falls geometrically in the size, which is linear in m.
"""

import math
from functools import reduce

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.combine import block_diagonal, compose, identity
from polycom_jax.approximation.exact import SUMS, power
from polycom_jax.approximation.network import Matrix, Network, feed_forward, linear
from polycom_jax.approximation.product_tree import Arithmetic


def sawtooth_error(teeth: int) -> float:
    """The sup of f_m - x^2 on [0, 1]: 4^-(m+1) for m = `teeth`."""
    return 0.25 ** (teeth + 1)


def teeth_for(error: float) -> int:
    """The least m >= 1 whose `sawtooth_error` is at most `error`."""
    require(error > 0, f"error={error} must be positive.")
    return max(1, math.ceil(-math.log2(error) / 2 - 1))


def sawtooth_square(teeth: int) -> Network:
    """x -> f_m(x) on [0, 1], by m = `teeth` layers of three ReLUs.

    A layer holds relu(g), relu(g - 1/2) and relu(f) for the g and f of the layers before it.

    Raises:
        InputError: teeth below 1.
    """
    require(teeth >= 1, f"teeth={teeth} must be at least 1.")
    weights, biases = [np.ones((3, 1))], [np.array([0, -0.5, 0])]
    tooth = np.array([2.0, -4.0, 0.0])
    for s in range(1, teeth + 1):
        finer = np.array([0.0, 0.0, 1.0]) - tooth / 4**s
        weights.append(np.stack([tooth, tooth, finer]) if s < teeth else finer[None])
        biases.append(np.array([0, -0.5, 0]) if s < teeth else np.zeros(1))
    return feed_forward(weights, biases, [np.tile((0.0, 1.0), (3, 1))] * teeth)


def sawtooth_arithmetic(teeth: int, *, nonnegative: bool = False) -> Arithmetic:
    """Products u v ~ f_m(|u + v| / 2) - f_m(|u - v| / 2) and squares f_m(|u|) on [-1, 1].

    All have depth m + 1. The error of a product is the difference of two numbers in [0, 4^-(m+1)],
    so at most that. As f_m increases and f_m(1) = 1, results stay in [-1, 1], and in [0, 1] for
    nonnegative operands: nothing needs to be clipped. A product with 0 is exactly 0.

    Args:
        teeth: m >= 1.
        nonnegative: whether all operands are in [0, 1].

    Raises:
        InputError: teeth below 1.
    """
    rows = [row for row in SUMS if not (nonnegative and max(row) < 0)]
    of_sum = [float(row[0] == row[1]) / 2 for row in rows]
    of_difference = [0.5 - share for share in of_sum]
    sides = [[1.0]] if nonnegative else [[1.0], [-1.0]]
    f = sawtooth_square(teeth)
    halves = _relu_layer(rows, [of_sum, of_difference])
    product = compose(linear([[1.0, -1.0]]), compose(block_diagonal(f, f), halves))
    square = compose(f, _relu_layer(sides, [[1.0] * len(sides)]))
    step = power(1) if nonnegative else identity(1)
    carry = reduce(lambda net, _: compose(step, net), range(teeth), step)
    return Arithmetic(product, square, carry, sawtooth_error(teeth))


def _relu_layer(weights: Matrix, readout: Matrix) -> Network:
    units = np.tile((0.0, 1.0), (len(weights), 1))
    return feed_forward([weights, readout], [None, None], [units])
