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
from polycom_jax.approximation.network import Matrix, Network, Vector, feed_forward, linear
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


def folded_square(pieces: int, levels: int) -> Network:
    """x -> the interpolant of x^2 on [0, 1] at the multiples of p^-m, by m = `levels` folds.

    With the zigzag T of p = `pieces` linear pieces from [0, 1] onto [0, 1], and the interpolant q
    of t - t^2 at the multiples of 1/p, it is x - sum_{k < m} p^(-2k) q(T^k(x)), as q(1 - t) = q(t).
    Both are made of the p units relu(t - j/p), behind which one unit carries T and one the sum. So
    the depth is 2 m - 1, the width p or p + 1, the size about 5 p m; there are exactly p^m pieces,
    and the error is p^(-2m) / 4. With m = 1 it is one hidden layer, with p = 2 a `sawtooth_square`.

    Raises:
        InputError: pieces below 2, or levels below 1.
    """
    require(pieces >= 2, f"pieces={pieces} must be at least 2.")
    require(levels >= 1, f"levels={levels} must be at least 1.")
    kinks = np.arange(pieces) / pieces
    fold = np.where(kinks > 0, 2.0 * pieces, pieces) * (-1.0) ** np.arange(pieces)
    curve = np.where(kinks > 0, -2 / pieces, 1 - 1 / pieces)
    first = np.ones((pieces, 1))
    later = np.zeros((pieces + 1, 2))
    later[:pieces, 0] = later[pieces, 1] = 1
    weights: list[Matrix] = []
    biases: list[Vector | None] = []
    total = np.zeros(pieces)
    for level in range(levels):
        weights.append(later if level else first)
        biases.append(np.append(-kinks, 0) if level else -kinks)
        total = -curve / float(pieces) ** (2 * level)
        # At first the sum is x, which is the first unit; later it has one of its own.
        total = np.append(total, 1) if level else total + (kinks == 0)
        if level < levels - 1:
            weights.append(np.stack([np.append(fold, 0)[: len(total)], total]))
            biases.append(np.zeros(2))
    units = [np.tile((0.0, 1.0), (len(matrix), 1)) for matrix in weights]
    return feed_forward([*weights, total[None]], [*biases, None], units)


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
