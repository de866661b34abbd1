"""Counting linear pieces: how few ReLUs cannot imitate a square (Theorem 2, lower bound).

On a line, a ReLU network is linear on pieces; p of them leave an error of at least 1/(8 p^2) for
x^2 on [0, 1]. What this proves: a ReLU network of width K and depth L has at most (K + 1)^L pieces
on a line, so the size must grow at least like log(1/eps) for PolyReLU networks whose function is
curved. It holds for some networks and not for all: with a_1 = 1 and the other coefficients 0, a
PolyReLU network is a ReLU network and needs no more (found by the paper's reviewers). For
a quadratic iterated L times it gives about L + log2(1/eps) / 2 units, and for K inputs no more than
for one, since a unit may serve all of them; not the K L log(1/eps) that is quoted for the paper.
"""

import math
from collections.abc import Sequence

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.bounds import least
from polycom_jax.approximation.combine import flatten
from polycom_jax.approximation.network import Network, Vector

NEAR = 2.0**-44
"""What units that change their sign at one point may differ in by rounding: between two such points
a slope would be rounding alone, and count as a piece."""


def breakpoints(net: Network, low: float, high: float) -> np.ndarray:
    """Where the slope of a ReLU network of one variable changes inside (low, high), ascending.

    Layer by layer: between the kinks so far, every unit's input is linear, so each change of its
    sign is found by linear interpolation. Changes of slope below 1e-9 of the largest are rounding,
    and kinks nearer to each other than `NEAR` of the interval's ends are one.

    Raises:
        InputError: more than one variable, an empty interval, or a unit that is not a multiple of a
            ReLU.
    """
    require(
        net.inputs == 1, f"pieces are counted on a line, and the network has {net.inputs} inputs."
    )
    require(low < high, f"the interval [{low}, {high}] must not be empty.")
    net = flatten(net)
    curved = any(np.any(layer.coeffs[..., 2:] != 0) for layer in net.layers)
    require(not curved, "pieces are counted for ReLU networks; this one has units of higher order.")
    x, h = np.array([low, high]), np.array([[low], [high]])
    for layer in net.layers:
        z = h @ layer.affine.weights[0].T + layer.affine.biases[0]
        x, z = _split(x, z)
        h = layer.coeffs[0, :, 0] + layer.coeffs[0, :, 1] * np.maximum(z, 0)
    y = h @ net.readout.weights[0].T + net.readout.biases[0]
    slopes = np.diff(y, axis=0) / np.diff(x)[:, None]
    change = np.abs(np.diff(slopes, axis=0)).max(1)
    return x[1:-1][change > 1e-9 * np.abs(slopes).max(initial=0)]


def count_pieces(net: Network, low: float = 0.0, high: float = 1.0) -> int:
    """Number of linear pieces of a one-variable ReLU network on [low, high]; see `breakpoints`."""
    return len(breakpoints(net, low, high)) + 1


def most_pieces(widths: Sequence[int]) -> int:
    """No ReLU network with these widths has more pieces on a line: prod_l (K_l + 1)."""
    return math.prod(width + 1 for width in widths)


def curvature(coeffs: Vector) -> float:
    """min |p''| on [0, 1] for p(z) = sum_i coeffs[i] z^i: 0 for everything that is a ReLU."""
    second = np.polynomial.Polynomial(coeffs).deriv(2)
    turns = second.deriv().roots()
    inside = turns.real[(abs(turns.imag) < 1e-12) & (turns.real > 0) & (turns.real < 1)]
    values = second(np.concatenate([[0.0, 1.0], inside]))
    return float(np.abs(values).min()) if np.all(values > 0) or np.all(values < 0) else 0.0


def imitation_lower_bound(pieces: int, coeffs: Vector = (0.0, 0.0, 1.0)) -> float:
    """No function with so many linear pieces is closer to sum_i coeffs[i] relu(x)^i on [0, 1].

    The bound is min |p''| / (16 p^2): on the longest piece, of length h >= 1/p, the curve leaves
    its chord by min |p''| h^2 / 8, and a line can halve that. It is 1/(8 p^2) for a square. It is 0
    for degree 1 (rightly: a ReLU imitates itself), and also where p'' changes sign (not sharp).

    Raises:
        InputError: pieces below 1.
    """
    require(pieces >= 1, f"pieces={pieces} must be at least 1.")
    return curvature(coeffs) / (16 * pieces**2)


def fewest_pieces(eps: float) -> int:
    """How many linear pieces an imitation of x^2 on [0, 1] within eps has at least."""
    require(eps > 0, f"eps={eps} must be positive.")
    return least(lambda pieces: imitation_lower_bound(pieces) <= eps)


def fewest_units(eps: float) -> float:
    """log2 of `fewest_pieces`: so many ReLUs an imitation of x^2 on [0, 1] within eps needs.

    A unit at most doubles the pieces, whatever the depth: prod_l (K_l + 1) <= 2^(sum of K_l). So
    half a unit a bit of accuracy is proved, and no more.
    """
    return math.log2(fewest_pieces(eps))


def _split(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds the points where a column of z, linear between the points x, changes its sign."""
    left, right = z[:-1], z[1:]
    cell, unit = np.nonzero(left * right < 0)
    share = left[cell, unit] / (left[cell, unit] - right[cell, unit])
    crossing = x[cell] + share * (x[cell + 1] - x[cell])
    near = NEAR * np.abs(x).max()
    apart = np.minimum(crossing - x[cell], x[cell + 1] - crossing) > near
    new = np.sort(crossing[apart])
    joint = np.sort(np.concatenate([x, new[np.diff(new, prepend=-np.inf) > near]]))
    return joint, np.stack([np.interp(joint, x, column) for column in z.T], axis=1)
