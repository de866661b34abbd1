"""Splines as networks of one hidden layer of relu^(n-1): ReLU, squared ReLU, cubed ReLU, ...

A spline of degree n - 1 with knots k / N is a polynomial plus a multiple of relu(x - k/N)^(n-1) for
each knot inside. So in one variable the optimal rate N^-n needs neither products nor, for n = 3,
anything but squared ReLU: optimality does not favour PolyReLU over a single power.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_banded

from polycom_jax._errors import require
from polycom_jax.approximation.bounds import check_cells
from polycom_jax.approximation.favard import favard_constant
from polycom_jax.approximation.network import Network, feed_forward
from polycom_jax.approximation.sobolev import Function
from polycom_jax.approximation.taylor import derivatives

MAX_DEGREE = 7

MARGIN = 100
"""Nodes on either side of [0, 1] that are interpolated too; what is cut off beyond them reaches the
interval divided by at least 1.8 a node, the slowest decay of a degree up to `MAX_DEGREE`."""


def spline_network(f: Function, n: int, cells: int) -> Network:
    """The spline of degree n - 1 that interpolates `f` on [0, 1], by one layer of relu^(n-1).

    Its N cells have the nodes k / N for even n and their middles for odd n. Outside [0, 1] it
    interpolates f's Taylor polynomials of degree n - 1 about 0 and 1, with which f is a function on
    R whose n-th derivative is not larger. The error is at most `spline_bound(n, N)`, plus a few
    roundings, and by `least_error` no method that depends continuously on f can do better with as
    many numbers, up to terms that fall faster. N + n - 2 units; those numbers that depend on f are
    one for each unit and the readout's bias. Weights stay bounded for all N.

    Args:
        f: the target; of its values, and derivatives up to order n - 1 at 0 and 1.
        n: derivatives of the target, from 2 on; n = 3 is a network of squared ReLUs.
        cells: N.

    Raises:
        InputError: n outside 2 ... 8, N below 1 or beyond what float64 resolves, or a target whose
            values are not finite numbers.
    """
    check_spline(n, cells)
    jumps, left = _pieces(_spline_coefficients(f, n, cells), n, cells)
    shifts = np.arange(n - 1) / max(n - 2, 1)
    powers = range(n - 1)
    rows = [[math.comb(n - 1, j) * a**j for a in shifts] for j in powers]  # of x^(n-1-j)
    heights = np.linalg.solve(np.array(rows), left[:0:-1])
    bias = left[0] - heights @ shifts ** (n - 1)
    knots = np.concatenate([-shifts, np.arange(1, cells) / cells])
    unit = np.eye(n)[-1:]
    return feed_forward(
        [np.ones((len(knots), 1)), np.concatenate([heights, jumps])[None]],
        [-knots, [bias]],
        [np.tile(unit, (len(knots), 1))],
        smoothness=n - 1,
    )


def spline_bound(n: int, cells: int) -> float:
    """sup |f - s| <= K_n (pi N)^-n for |f^(n)| <= 1: 1/8, 1/24, 5/384 times N^-n for n = 2, 3, 4.

    K_n is `favard_constant`. It is the error of cardinal interpolation of Euler's perfect spline,
    which has the largest.

    Reference: C. de Boor and I. J. Schoenberg, "Cardinal interpolation and spline functions VIII"
    (1976).

    Raises:
        InputError: n outside 2 ... 8, or N below 1.
    """
    require(2 <= n <= MAX_DEGREE + 1, f"n={n} must be from 2 to {MAX_DEGREE + 1}.")
    check_cells(cells)
    return favard_constant(n) * (math.pi * cells) ** -n


def check_spline(n: int, cells: int) -> None:
    """Refuses n outside 2 ... 8, N below 1, and N at which weights would consist of rounding."""
    require(
        2 <= n <= MAX_DEGREE + 1,
        f"n={n} must be from 2 to {MAX_DEGREE + 1}: a network of relu^(n-1) is to be continuous.",
    )
    check_cells(cells)
    most = (math.factorial(n - 1) * 2.0 ** (52 - n)) ** (1 / (n - 1))
    require(
        cells <= most,
        f"N={cells} must be at most {most:,.0f} for n={n}: float64 has no finer grain.",
    )


def _b_spline(order: int, x: np.ndarray) -> np.ndarray:
    """The B-spline of that order with the knots 0, 1, ..., order, by de Boor's recurrence."""
    if order == 1:
        return ((x >= 0) & (x < 1)).astype(float)
    below = x * _b_spline(order - 1, x) + (order - x) * _b_spline(order - 1, x - 1)
    return below / (order - 1)


def _spline_coefficients(f: Function, n: int, cells: int) -> Float[np.ndarray, " N+n-1"]:
    """Of the B-splines that start at the knots -(n - 1) ... N - 1, as multiples of one small step.

    Differences of such numbers are exact. So what rounding there is counts as a change of the
    coefficients, which changes the spline by as much and no more, whatever the derivatives do.
    """
    half = 0.5 * (n % 2)
    nodes = np.arange(-MARGIN, cells + MARGIN + 1) + half
    values = _extended(f, n, nodes / cells)
    peak = _b_spline(n, np.arange(n + 1.0) + half)  # a B-spline at the nodes in its support
    peak = peak[peak > 0]
    reach = len(peak) // 2
    bands = np.tile(peak[:, None], (1, len(nodes)))
    found = solve_banded((reach, reach), bands, values)
    # The middle of a B-spline that starts at knot i is i + n / 2.
    start = round(MARGIN - (n - 1) + n / 2 - half)
    used = found[start : start + cells + n - 1]
    step = 2.0 ** (math.ceil(math.log2(np.abs(used).max() or 1.0)) - 52)
    return np.round(used / step) * step


def _extended(f: Function, n: int, x: np.ndarray) -> np.ndarray:
    """f on [0, 1], and its Taylor polynomials about the ends outside."""
    inside = (x >= 0) & (x <= 1)
    values = np.empty_like(x)
    values[inside] = derivatives(f, x[inside, None], [(0,)])[:, 0]
    jets = derivatives(f, np.array([[0.0], [1.0]]), [(k,) for k in range(n)])
    for end, jet, where in ((0.0, jets[0], x < 0), (1.0, jets[1], x > 1)):
        terms = [c / math.factorial(k) for k, c in enumerate(jet)]
        values[where] = np.polynomial.Polynomial(terms)(x[where] - end)
    return values


def _pieces(coeffs: np.ndarray, n: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The multiples of relu(x - k/N)^(n-1) at the inner knots, and the polynomial at x = 0+."""
    jumps = np.diff(coeffs, n)[: cells - 1] * float(cells) ** (n - 1) / math.factorial(n - 1)
    taylor = np.empty(n)
    for k in range(n):
        order = n - k  # of the B-splines that the k-th derivative consists of
        first = np.diff(coeffs[:n], k)  # those that start at the knots -(order - 1) ... 0
        at_zero = _b_spline(order, np.arange(order - 1, -1, -1.0))
        taylor[k] = first @ at_zero * float(cells) ** k / math.factorial(k)
    return jumps, taylor
