"""What the networks of Theorem 3 cost and how far off they are at most, as formulas.

Targets are in the unit ball of W^{n,inf}([0,1]^d): all derivatives D^m f, |m| <= n, are at most 1.
"""

import math
from collections.abc import Callable

from polycom_jax._errors import require
from polycom_jax.approximation.network import Network
from polycom_jax.approximation.partitions import Partition, PartitionName, partition
from polycom_jax.approximation.product_tree import Term, as_term, operands, product_levels


def check_order(n: int, d: int) -> None:
    """Refuses n < 1 and d < 1."""
    require(n >= 1, f"n={n} must be at least 1: the number of derivatives that the target has.")
    require(d >= 1, f"d={d} must be at least 1: the number of variables.")


def check_cells(cells: int) -> None:
    """Refuses N < 1."""
    require(cells >= 1, f"N={cells} must be at least 1: the number of cells on each axis.")


def check_eps(eps: float) -> None:
    """Refuses eps outside (0, 1)."""
    require(
        0 < eps < 1,
        f"eps={eps} must be between 0 and 1: with eps >= 1 the network 0 serves the unit ball.",
    )


def bound(n: int, d: int, cells: int, kind: PartitionName = "trapezoid") -> float:
    """sup |f - f_N| <= (d R)^n / n! N^-n, with R = 2/3 for trapezoids and 1 for splines.

    f_N(x) is a convex combination of Taylor polynomials about nodes at most R / N away on each
    axis, and sum_{|m|=n} |h^m| / m! = (|h_1| + ... + |h_d|)^n / n!. It is sharp up to the weights:
    in d = 1 the measured errors for |f^(n)| = 1 are `interior_error`.

    Args:
        n: derivatives of the target.
        d: variables.
        cells: N, on each axis.
        kind: the partition of unity.
    """
    check_order(n, d)
    check_cells(cells)
    return (d * partition(kind).radius) ** n / math.factorial(n) * float(cells) ** -n


def paper_bound(n: int, d: int, cells: int) -> float:
    """The looser bound 2^d d^n / n! N^-n, with which Theorem 3 is commonly proved.

    It adds up the errors of 2^d overlapping pieces instead of averaging them.
    """
    check_order(n, d)
    check_cells(cells)
    return 2**d * d**n / math.factorial(n) * float(cells) ** -n


INTERIOR = {1: 1 / 3, 2: 1 / 8, 3: 1 / 162, 4: 1 / 384}
"""max over [0, 1] of |phi(z) z^n + (1 - phi(z)) (z - 1)^n| / n! for the trapezoid phi. For odd n
the errors of two pieces have opposite signs: the worst place is z = 1/3, where one stands alone.
For even n they add, and it is the middle."""


def interior_error(n: int, cells: int) -> float:
    """sup |f - f_N| for d = 1, trapezoids and f^(n) = 1 from node to node: `INTERIOR` / N^n.

    Raises:
        InputError: n outside 1 ... 4, or N below 1.
    """
    require(n in INTERIOR, f"n={n} must be from 1 to {max(INTERIOR)}, where the constant is known.")
    check_cells(cells)
    return INTERIOR[n] * float(cells) ** -n


def cells_for(eps: float, n: int, d: int, kind: PartitionName = "trapezoid") -> int:
    """The least N with `bound(n, d, N)` <= eps.

    Raises:
        InputError: eps outside (0, 1), n or d below 1.
    """
    check_eps(eps)
    return least(lambda cells: bound(n, d, cells, kind) <= eps)


def least(holds: Callable[[int], bool]) -> int:
    """The least whole number from 1 on for which `holds`, which holds for all larger ones too."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def multi_indices(d: int, degree: int) -> list[tuple[int, ...]]:
    """All d-tuples of integers >= 0 with sum <= degree, low sums first: C(degree + d, d)."""
    if d == 0:
        return [()]
    every = [(k, *rest) for k in range(degree + 1) for rest in multi_indices(d - 1, degree - k)]
    return sorted(every, key=lambda index: (sum(index), index))


def cell_exponents(n: int, d: int) -> list[tuple[int, ...]]:
    """Exponents of (phi_1, ..., phi_d, t_1, ..., t_d) in the terms phi t^m, |m| < n, of a cell.

    For n = 1 there are no coordinates.
    """
    return [(1,) * d + (index if n > 1 else ()) for index in multi_indices(d, n - 1)]


def size_formula(n: int, d: int, cells: int, kind: PartitionName = "trapezoid") -> int:
    """The size of `taylor_network`: c(n, d) (N + 1)^d.

    c(n, d) = `cell_size` does not depend on N, so the size is O(eps^(-d/n)), without a logarithm.
    """
    check_cells(cells)
    return cell_size(n, d, kind) * (cells + 1) ** d


def cell_size(n: int, d: int, kind: PartitionName = "trapezoid") -> int:
    """c(n, d): weights, biases and coefficients of one node's block, counted wire by wire.

    Bumps and coordinates of each variable; then, for every layer of the product tree, three units
    for a product, one for a square or a number that is carried on, each with one coefficient and a
    weight for every unit it reads; then a weight for every unit of the C(n-1+d, d) terms.
    """
    check_order(n, d)
    basis = partition(kind)
    terms = [as_term(row) for row in cell_exponents(n, d)]
    made: dict[Term, int] = {(i,): _features(basis)[i >= d][0] for i in range(2 * d)}
    total = d * sum(size for _, size in _features(basis)[: 2 if n > 1 else 1])
    levels = product_levels(terms)
    for k, level in enumerate(levels[1:]):
        new: dict[Term, int] = {}
        for term in level:
            parts = operands(term, 2**k)
            new[term] = 3 if len(set(parts)) == 2 else 1
            total += new[term] * (1 + sum(made[part] for part in set(parts)))
        made = new
    return total + sum(made[term] for term in terms)


def _features(basis: Partition) -> tuple[tuple[int, int], tuple[int, int]]:
    """For bump and coordinate: units in the last hidden layer, and size without the readout.

    In a copy each unit of the first layer has a bias, which says where its node is.
    """

    def count(net: Network) -> tuple[int, int]:
        unbiased = net.layers[0].units - int(net.layers[0].affine.biased.sum())
        return net.layers[-1].units, net.size - net.readout.size + unbiased

    return count(basis.bump), count(basis.coordinate)
