"""What is necessary in one variable, as numbers: no network can do better than these.

Two arguments, for functions of the unit ball of W^{n,inf}([0, 1]) and errors in sup.

With continuity: if all numbers of a method depend continuously on the target, P of them leave an
error of at least the Bernstein width b_P (DeVore, Howard and Micchelli 1989). Periodic splines with
2 m equal cells give b_{2m-1} >= K_n (2 pi m)^-n (Tikhomirov 1960).

Without: 1/h bumps of height c h^n, each of them up or down, are 2^(1/h) functions of the ball. A
class within eps < c h^n of all of them takes both signs at the bumps' peaks in every combination,
so its pseudo-dimension is at least 1/h; and that of networks of piecewise polynomials is bounded
by Warren's theorem.

References: R. DeVore, R. Howard, C. Micchelli, "Optimal nonlinear approximation" (1989); V. M.
Tikhomirov (1960), also in A. Pinkus, "n-Widths in Approximation Theory" (1985); P. Bartlett,
N. Harvey, C. Liaw, A. Mehrabian, arXiv 1703.02930, whose counting this is.
"""

import math

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.bounds import check_eps, check_order, least
from polycom_jax.approximation.favard import favard_constant


def least_error(n: int, parameters: int) -> float:
    """K_n (pi (P + 1))^-n for odd P, P + 2 in place of P + 1 for even P.

    No method with P numbers that depend continuously on the target has a smaller error on the unit
    ball of W^{n,inf}([0, 1]). `splines.spline_bound` has the same constant: with N cells and N +
    n - 1 such numbers, the spline's error is asymptotically the least there is.

    Raises:
        InputError: n or P below 1.
    """
    check_order(n, 1)
    require(parameters >= 1, f"parameters={parameters} must be at least 1.")
    cells = 2 * (parameters // 2 + 1)
    return favard_constant(n) * (math.pi * cells) ** -n


def fewest_parameters(n: int, eps: float) -> int:
    """The least P with `least_error(n, P)` <= eps: about (K_n / eps)^(1/n) / pi.

    Raises:
        InputError: n below 1, or eps outside (0, 1).
    """
    check_order(n, 1)
    check_eps(eps)
    return least(lambda parameters: least_error(n, parameters) <= eps)


def bump_height(n: int) -> float:
    """c of the tallest bump c h^n with |f^(n)| <= 1 that is 0 outside an interval of length h.

    Its n-th derivative is the sign of Chebyshev's U_n on [-1, 1], which is orthogonal to all
    polynomials of degree n - 1, so that all of its derivatives below n end at 0. 1/2 and 1/16 for
    n = 1 and 2.

    Raises:
        InputError: n below 1.
    """
    check_order(n, 1)
    zeros = np.cos(np.arange(1, n + 1) * np.pi / (n + 1))
    knots = np.concatenate([[1.0], np.maximum(zeros, 0.0), [0.0]])  # where U_n changes its sign
    pieces = -np.diff(knots**n) / n * (-1.0) ** np.arange(n + 1)
    return abs(float(pieces.sum())) / math.factorial(n - 1) / 2**n


def fewest_weights(n: int, eps: float, depth: int, order: int) -> int:
    """So many numbers a PolyReLU network of `depth` hidden layers needs, however they are chosen.

    Its wiring is one for all targets; nothing is asked of how the numbers depend on the target. For
    W numbers, m points and degree D of the values in the numbers, a layer multiplies the regions by
    at most 2 (2 e m k D / W)^W for its k units (Warren), with D_1 = 1, D_(i+1) = order D_i + 2; k
    <= W / 3, as a unit has two weights and a coefficient. 2^m may not exceed the product over the
    layers and the output, at m = the bumps that are higher than eps.

    Raises:
        InputError: n, depth or order below 1, or eps outside (0, 1).
    """
    check_order(n, 1)
    check_eps(eps)
    require(depth >= 1 and order >= 1, f"depth={depth} and order={order} must be at least 1.")
    points = math.floor((bump_height(n) / eps) ** (1 / n))
    while points > 0 and bump_height(n) * float(points) ** -n <= eps:
        points -= 1
    degrees = [1]
    for _ in range(depth):
        degrees.append(order * degrees[-1] + 2)

    def shatters(weights: int) -> bool:
        units = [max(weights / 3, 1.0)] * depth + [1.0]
        signs = 0.0
        for count, degree in zip(units, degrees, strict=True):
            conditions = points * count
            if conditions > weights:
                share = 2 * math.e * conditions * degree / weights
                signs += 1 + weights * math.log2(max(share, 2.0))
            else:
                signs += conditions  # no more than every combination of signs
        return signs >= points

    return least(shatters)
