"""ReLU networks that imitate PolyReLU networks (Lemma 2 and Theorem 2 of arXiv 2411.03884).

What is proved here by construction: for fixed order r and fixed shape, a ReLU network of size
O(log(1/eps)) suffices. This is better than the O(log^2(1/eps)) that is quoted for the paper, whose
proof goes through a lemma on general polynomials. `pieces` has the lower bound.
"""

from collections.abc import Sequence

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.combine import block_diagonal, compose, flatten, with_units
from polycom_jax.approximation.network import Network, Vector, feed_forward, linear
from polycom_jax.approximation.product_tree import monomials
from polycom_jax.approximation.sawtooth import sawtooth_arithmetic, teeth_for


def imitate_activation(coeffs: Vector, eps: float, *, radius: float = 1.0) -> Network:
    """A ReLU network within `eps` of sum_i coeffs[i] relu(x)^i for |x| <= radius (Lemma 2).

    With z = relu(x) / radius clipped to [0, 1], z^i takes i - 1 products of error delta, so the
    whole is off by at most sum_i |coeffs[i]| radius^i (i - 1) delta, at a size O(log(1/eps)) for a
    fixed order.
    An activation of degree 1 at most is a ReLU itself: it is met exactly, and by two units.

    Args:
        coeffs: a_0 ... a_r, ascending.
        eps: the largest error.
        radius: half the length of the domain; beyond it the network is constant.

    Raises:
        InputError: eps or radius that is not positive, or fewer than two coefficients.
    """
    return _imitate_unit(np.asarray(coeffs, np.float64), radius, _teeth(coeffs, eps, radius))


def imitate(net: Network, eps: float, *, radius: float = 1.0) -> Network:
    """A ReLU network within `eps` of a PolyReLU network on [-radius, radius]^d (Theorem 2).

    Each unit is replaced by its imitation on the interval that its input can reach, to which the
    imitation clips (two ReLUs); without clipping, errors of earlier layers would leave the domain.
    Let unit u of layer j have the error delta_j, and let G_j[o, u] = (|R| D_L |W_L| ... D_{j+1}
    |W_{j+1}|)[o, u] bound how it reaches output o, with D the Lipschitz constants of the units on
    their intervals. Then the output is off by at most sum_j delta_j max_o sum_u G_j[o, u]; every
    layer gets the share eps / L of it.

    The intervals and constants grow with weights and depth; the paper assumes both bounded by 1.

    Args:
        net: any network; one made of copies is written out.
        eps: the largest error of an output.
        radius: half the edge of the box of inputs.

    Returns:
        A network all of whose units are ReLUs. Its size is O(log(1/eps)) for a given `net`.

    Raises:
        InputError: eps or radius that is not positive, or a dense form above `DENSE_LIMIT`.
    """
    require(eps > 0, f"eps={eps} must be positive.")
    require(radius > 0, f"radius={radius} must be positive.")
    net = flatten(net)
    reach = _reach(net, radius)
    allowed = _allowances(net, reach, eps)
    units = []
    for layer, radii, delta in zip(net.layers, reach, allowed, strict=True):
        pairs = list(zip(layer.coeffs[0], radii, strict=True))
        teeth = max(_teeth(coeffs, delta, r) for coeffs, r in pairs)
        units.append(block_diagonal(*(_imitate_unit(coeffs, r, teeth) for coeffs, r in pairs)))
    return with_units(net, units)


def _imitate_unit(coeffs: np.ndarray, radius: float, teeth: int) -> Network:
    """The imitation of one unit on [-radius, radius], with sawtooth squares of so many teeth."""
    powers = [i for i in range(1, len(coeffs)) if coeffs[i] != 0]
    if not powers:
        return linear([[0.0]], coeffs[:1])
    clip = feed_forward(
        [[[1 / radius], [1 / radius]], [[1.0, -1.0]]], [[0.0, -1.0], None], [[[0.0, 1.0]] * 2]
    )
    how = sawtooth_arithmetic(teeth, nonnegative=True)
    terms = compose(monomials([(i,) for i in powers], how), clip)
    return compose(linear([[coeffs[i] * radius**i for i in powers]], coeffs[:1]), terms)


def _teeth(coeffs: Vector, eps: float, radius: float) -> int:
    require(eps > 0, f"eps={eps} must be positive.")
    require(radius > 0, f"radius={radius} must be positive.")
    require(len(coeffs) >= 2, f"coeffs={coeffs} must be two or more, ascending.")
    order = np.arange(2, len(coeffs))
    products = float(np.sum(np.abs(coeffs[2:]) * radius**order * (order - 1)))
    return teeth_for(eps / products) if products else 1


def _reach(net: Network, radius: float) -> list[np.ndarray]:
    """For each layer the largest inputs of its units, by interval arithmetic.

    A unit that is never active gets 1: any domain does.
    """
    low, high = np.full(net.inputs, -radius), np.full(net.inputs, radius)
    found = []
    for layer in net.layers:
        w, b, c = layer.affine.weights[0], layer.affine.biases[0], layer.coeffs[0]
        top = np.maximum(w @ (low + high) / 2 + b + np.abs(w) @ (high - low) / 2, 0)
        found.append(np.where(top > 0, top, 1.0))
        terms = c[:, 1:] * top[:, None] ** np.arange(1, c.shape[1])
        low = c[:, 0] + np.minimum(terms, 0).sum(1)
        high = c[:, 0] + np.maximum(terms, 0).sum(1)
    return found


def _allowances(net: Network, reach: Sequence[np.ndarray], eps: float) -> list[float]:
    """The error that each layer's units may have."""
    share = eps / max(net.depth, 1)
    to_output, allowed = np.abs(net.readout.weights[0]), []
    for layer, radii in zip(net.layers[::-1], reach[::-1], strict=True):
        c = np.abs(layer.coeffs[0])
        allowed.append(share / max(float(to_output.sum(1).max()), np.finfo(float).tiny))
        powers = np.arange(1, c.shape[1])
        lipschitz = (c[:, 1:] * powers * radii[:, None] ** (powers - 1)).sum(1)
        to_output = (to_output * lipschitz) @ np.abs(layer.affine.weights[0])
    return allowed[::-1]
