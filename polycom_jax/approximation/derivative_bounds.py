"""How far off the derivatives of Theorem 3's networks are, with constants."""

import math
from dataclasses import dataclass

from polycom_jax._errors import require
from polycom_jax.approximation.bounds import bound, check_cells, check_order
from polycom_jax.approximation.partitions import PartitionName, partition


@dataclass(frozen=True)
class _Slopes:
    """sup over x of sum_m |D^k phi(x - m)| in one variable, for k = 0, 1, 2."""

    sums: tuple[float, ...]


_SLOPES = {"trapezoid": _Slopes((1.0, 6.0)), "spline": _Slopes((1.0, 4.5, 18.0))}
"""Two neighbours at most are not flat at a point, with slopes of opposite sign: 3 each for the
trapezoid; for the cubic spline 9/4 each, in the middle, and second derivatives of 9."""


def derivative_bound(
    n: int, d: int, cells: int, order: int = 1, kind: PartitionName = "trapezoid"
) -> float:
    """max over |m| = order of sup |D^m (f - f_N)| for f in the unit ball of W^{n,inf}([0,1]^d).

    With r = d R / N, and S_k N^k the sum over nodes of |D^k phi| in one variable (6 N for
    trapezoids),

        order 1: S_1 N r^n / n! + r^(n-1) / (n-1)!
        order 2: max(S_2, S_1^2) N^2 r^n / n! + 2 S_1 N r^(n-1) / (n-1)! + r^(n-2) / (n-2)!

    without S_1^2 in d = 1. Proof: D^m (sum phi_k (f - P_k)) by Leibniz's rule, where D^j P_k is the
    Taylor polynomial of D^j f, so that D^j (f - P_k) is at most r^(n-j) / (n-j)!.

    So for an error eps in W^{s,inf} a size of O(eps^(-d/(n-s))) is enough. The bound known for ReLU
    networks, where s <= 1, is that times log(1/eps)^2 (Gühring, Kutyniok and Petersen 2020).

    Args:
        n: derivatives of the target, above `order` for a rate.
        d: variables.
        cells: N, on each axis.
        order: 1, or 2 for splines.
        kind: the partition of unity.

    Raises:
        InputError: an order that the networks do not have, or that is above n; n, d, N below 1; an
            unknown partition.
    """
    check_order(n, d)
    check_cells(cells)
    radius = partition(kind).radius
    slopes = _SLOPES[kind].sums
    require(
        1 <= order < len(slopes) and order <= n,
        f"order={order} must be from 1 to {min(n, len(slopes) - 1)}: n={n}, and networks of"
        f" {kind}s have no more derivatives.",
    )
    reach = d * radius / cells
    rest = [reach ** (n - j) / math.factorial(n - j) for j in range(order + 1)]
    if order == 1:
        return slopes[1] * cells * rest[0] + rest[1]
    mixed = max(slopes[2], slopes[1] ** 2 if d > 1 else 0.0)
    return mixed * cells**2 * rest[0] + 2 * slopes[1] * cells * rest[1] + rest[2]


def hoelder_bound(
    n: int, d: int, cells: int, smoothness: float, kind: PartitionName = "trapezoid"
) -> float:
    """sup |e(x) - e(y)| / |x - y|^s for e = f - f_N and 0 < s < 1: between sup and gradient.

    At most (2 sup |e|)^(1-s) sup |grad e|^s, since |e(x) - e(y)| is at most 2 sup |e| and at most
    sup |grad e| |x - y|; the gradient's length is at most sqrt(d) `derivative_bound`. It falls as
    N^-(n-s).

    Raises:
        InputError: s outside (0, 1), or as `derivative_bound`.
    """
    require(0 < smoothness < 1, f"smoothness={smoothness} must be between 0 and 1.")
    gradient = math.sqrt(d) * derivative_bound(n, d, cells, 1, kind)
    return (2 * bound(n, d, cells, kind)) ** (1 - smoothness) * gradient**smoothness
