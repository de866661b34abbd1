"""Between the theory's units and those of language models, and between the two types of PolyCom."""

from dataclasses import replace

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.combine import flatten, with_units
from polycom_jax.approximation.network import Network, Vector, ascending, feed_forward


def share_coefficients(net: Network, coeffs: Vector, scales: Vector | None = None) -> Network:
    """The same function by units that all have the same coefficients, as in a language model.

    With A(z) = sum_i a_i relu(z)^i the shared activation, a unit sum_i c_i relu(z)^i is
    const + sum_k v_k A(s_k z) for any r different scales s_k > 0, where v solves the Vandermonde
    system sum_k v_k s_k^i = c_i / a_i for i = 1 ... r. So r units stand for one, exactly, at the
    same depth. The system is ill conditioned for large r: about 10^r for the default scales.

    Args:
        net: a network whose units have order r at most.
        coeffs: a_0 ... a_r, with a_1 ... a_r not zero.
        scales: r positive, different numbers; (1, ..., r) / r by default.

    Raises:
        InputError: coefficients with a zero, an order below the network's, or scales that are not
            r different positive numbers.
    """
    shared = ascending(coeffs)
    order = len(shared) - 1
    require(bool((shared[1:] != 0).all()), f"coeffs={coeffs} must not be 0 for powers of 1 and up.")
    chosen = np.arange(1, order + 1) / order if scales is None else np.array(scales, np.float64)
    require(
        len(chosen) == order == len(set(chosen)) and bool((chosen > 0).all()),
        f"scales={scales} must be {order} different positive numbers.",
    )
    net = flatten(net)
    return with_units(net, [_shared_units(n.coeffs[0], shared, chosen) for n in net.layers])


def _shared_units(coeffs: np.ndarray, shared: np.ndarray, scales: np.ndarray) -> Network:
    """Inputs of the units to their outputs, each unit made of `len(scales)` others."""
    order, units = len(scales), len(coeffs)
    require(
        coeffs.shape[1] <= order + 1 or not coeffs[:, order + 1 :].any(),
        f"units of order {coeffs.shape[1] - 1} need shared coefficients of that order, not of"
        f" {order}.",
    )
    wanted = np.zeros((units, order + 1))
    wanted[:, : coeffs.shape[1]] = coeffs[:, : order + 1]
    system = scales ** np.arange(1, order + 1)[:, None]
    shares = np.linalg.solve(system, (wanted[:, 1:] / shared[1:]).T).T
    spread = np.kron(np.eye(units), scales[:, None])
    gather = (np.eye(units)[:, :, None] * shares[:, None]).reshape(units, -1)
    constant = wanted[:, 0] - shared[0] * shares.sum(1)
    net = feed_forward([spread, gather], [None, constant], [np.tile(shared, (units * order, 1))])
    terms = np.abs(shares) @ (scales[:, None] ** np.arange(1, order + 1) @ np.abs(shared[1:]))
    values = np.abs(wanted[:, 1:]).sum(1)
    ratios = np.divide(terms, values, out=np.ones(units), where=values > 0)
    return replace(net, condition=float(ratios.max(initial=1)))


def shared_power(exponent: int, coeffs: Vector) -> Network:
    """x -> relu(x)^exponent by r units with the same coefficients. See `share_coefficients`.

    Raises:
        InputError: an exponent outside 1 ... r, or as for `share_coefficients`.
    """
    order = len(coeffs) - 1
    require(1 <= exponent <= order, f"exponent={exponent} must be from 1 to the order, {order}.")
    unit = np.eye(order + 1)[exponent][None]
    return share_coefficients(feed_forward([[[1.0]], [[1.0]]], [None, None], [unit]), coeffs)


def type2_unit(coeffs: Vector) -> Network:
    """x -> a_0 + sum_{i>=1} a_i relu(x^i), a unit of Type II, by two units of Type I; exact on R.

    relu(x^i) is relu(x)^i for odd i, and x^i = relu(x)^i + relu(-x)^i for even i. So one unit sees
    x and has all coefficients; the other sees -x and has the even ones. The depth stays.

    Raises:
        InputError: fewer than two coefficients.
    """
    right = ascending(coeffs)
    even = np.arange(len(right)) % 2 == 0
    left = np.where(even, right, 0)
    left[0] = 0
    return feed_forward([[[1.0], [-1.0]], [[1.0, 1.0]]], [None, None], [np.stack([right, left])])


def type1_by_type2(coeffs: Vector) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of two Type II units, one after the other, that make one of Type I; exact on R.

    The first is a ReLU, (0, 1, 0, ...); the second has the coefficients as they are, for relu(z^i)
    is z^i where z >= 0. One more layer is needed: in a single layer, Type II offers relu(w x + b)^i
    for odd i and smooth powers for even i, so no function with a jump in its second derivative
    alone, such as relu(x)^2. See `type2_limit`.

    Raises:
        InputError: fewer than two coefficients.
    """
    second = ascending(coeffs)
    return np.eye(len(second))[1], second


def type2_limit(step: float) -> Network:
    """x -> (relu(x + h)^3 - relu(x - h)^3) / (6 h): relu(x)^2 in one layer of Type II, as a limit.

    relu(x)^3 = relu(x^3) is of both types. The sup error is h^2 / 3, and weights grow like 1/h: in
    floating point the error has a floor, and where that is high the dtype is refused.

    Args:
        step: h > 0.

    Raises:
        InputError: h that is not positive.
    """
    require(step > 0, f"step={step} must be positive.")
    cubes = np.tile((0.0, 0.0, 0.0, 1.0), (2, 1))
    weight = 1 / (6 * step)
    net = feed_forward([[[1.0], [1.0]], [[weight, -weight]]], [[step, -step], None], [cubes])
    return replace(net, condition=max(1.0, 2 * weight))
