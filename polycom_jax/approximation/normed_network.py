"""PolyNorm networks as data: what `normed_sobolev` and `normed_imitation` build.

Every hidden layer is the library's own `poly_norm` over its whole row, epsilon included:

    z_1 = W_1 x + b_1,   z_(l+1) = W_(l+1) P_l(z_l),   y = W P_L(z_L) + b
    P_l(z)_j = c_l0 + sum_i c_li z_j^i / sqrt(mean_k(z_k^(2i)) + eps)

Layers after the first have no bias. A row is read *projectively*: its first number stands for 1,
the others for their quotients by it, so that the factor 1 / sqrt(...) of a power, which all numbers
of the row share, cancels. That is what makes powers exact, whatever eps is.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from polycom_jax._errors import require
from polycom_jax.activations.inputs import EPS, work_dtype
from polycom_jax.approximation.evaluation import floating_points
from polycom_jax.kernels.poly_norm.api import poly_norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PolyNormNetwork:
    """A PolyNorm network of L hidden layers, all of width w.

    Attributes:
        entry: [w, d], the first matrix.
        shift: [w], its bias.
        weights: [L - 1, w, w], the other matrices, without biases.
        coeffs: [L, r + 1], ascending, of each layer's PolyNorm.
        readout: [o, w].
        offset: [o].
        eps: PolyNorm's, under the root.
    """

    entry: Float[np.ndarray, "w d"]
    shift: Float[np.ndarray, " w"]
    weights: Float[np.ndarray, "L-1 w w"]
    coeffs: Float[np.ndarray, "L R+1"]
    readout: Float[np.ndarray, "o w"]
    offset: Float[np.ndarray, " o"]
    eps: float = field(default=EPS, metadata={"static": True})

    @property
    def depth(self) -> int:
        """Number of hidden layers, L."""
        return len(self.coeffs)

    @property
    def width(self) -> int:
        """Units of a hidden layer, w."""
        return len(self.shift)

    @property
    def size(self) -> int:
        """Nonzero weights, biases and coefficients."""
        arrays = (self.entry, self.shift, self.weights, self.coeffs, self.readout, self.offset)
        return sum(int(np.count_nonzero(array)) for array in arrays)

    @property
    def largest_weight(self) -> float:
        """max |w| over all matrices and biases."""
        arrays = (self.entry, self.shift, self.weights, self.readout, self.offset)
        return max(float(np.abs(array).max(initial=0)) for array in arrays)


def evaluate_normed(net: PolyNormNetwork, x: Float[ArrayLike, "*S d"]) -> Float[Array, "*S o"]:
    """Values of the network, jitted: hidden layers one after the other by `polycom_jax.poly_norm`.

    Args:
        net: the network.
        x: points, the last axis over its variables.

    Returns:
        Values in the dtype of `x`: float64 under `jax.enable_x64(True)`, where arrays of NumPy keep
        their precision, and float32 otherwise. Narrower ones compute in float32 and are rounded
        once.

    Raises:
        InputError: points with another number of coordinates.
    """
    points = floating_points(x, net.entry.shape[1])
    return _evaluate(net, points.astype(work_dtype(points.dtype))).astype(points.dtype)


@jax.jit
def _evaluate(net: PolyNormNetwork, x: Float[Array, "*S d"]) -> Float[Array, "*S o"]:
    made: Any = jax.tree.map(lambda array: jnp.asarray(array).astype(x.dtype), net)

    def layer(z: Array, numbers: tuple[Array, Array]) -> tuple[Array, None]:
        coeffs, matrix = numbers
        return _times(poly_norm(z, coeffs, eps=net.eps), matrix), None

    z, _ = jax.lax.scan(
        layer, _plus(_times(x, made.entry), made.shift), (made.coeffs[:-1], made.weights)
    )
    last = poly_norm(z, made.coeffs[-1], eps=net.eps)
    return _plus(_times(last, made.readout), made.offset)


def _plus(rows: Array, numbers: Array) -> Array:
    return rows + jnp.broadcast_to(numbers, rows.shape)


def _times(x: Array, matrix: Array) -> Array:
    return jnp.matmul(x, matrix.T, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Rows:
    """How affine forms become a layer's row, and how even and odd powers are read out of it.

    A form u is in the row as u and -u, so that P(u) + P(-u) has the even powers alone and
    P(u) - P(-u) the odd ones. Where there are even powers alone, u is in the row once.

    Attributes:
        coeffs: c_0 ... c_r of PolyNorm.
    """

    coeffs: tuple[float, ...]

    @property
    def single(self) -> bool:
        """Whether the square is the only term."""
        return not any(c for i, c in enumerate(self.coeffs) if i != 2)

    def width(self, forms: int) -> int:
        """Units for so many forms."""
        return forms if self.single else 2 * forms + bool(self.coeffs[0])

    def enter(self, forms: Float[np.ndarray, "m R"]) -> Float[np.ndarray, "w R"]:
        """The row of these forms; with a bias, also the form 0, from which it is read."""
        if self.single:
            return forms
        zero = np.zeros((int(bool(self.coeffs[0])), forms.shape[1]))
        return np.concatenate([forms, -forms, zero])

    def squares(self, readings: Float[np.ndarray, "k m"]) -> Float[np.ndarray, "k w"]:
        """Readings of the squares of the forms (common factor 1 / sqrt(mean(z^4) + eps))."""
        if self.single:
            return readings / self.coeffs[2]
        bias = np.zeros((len(readings), 0))
        if self.coeffs[0]:
            bias = -2 * readings.sum(axis=1, keepdims=True)
        return np.concatenate([readings, readings, bias], axis=1) / (2 * self.coeffs[2])

    def linear(self, readings: Float[np.ndarray, "k m"]) -> Float[np.ndarray, "k w"]:
        """Readings of the forms themselves (common factor 1 / sqrt(mean(z^2) + eps))."""
        zero = np.zeros((len(readings), int(bool(self.coeffs[0]))))
        return np.concatenate([readings, -readings, zero], axis=1) / (2 * self.coeffs[1])


def least_factor(mean_fourth: float, eps: float) -> float:
    """A lower bound of the square of every row's first number, in a network of squares.

    The first row begins with 1. If a row's first number is k and the mean of its fourth powers at
    most m k^4, the next row begins with k^2 / sqrt(m k^4 + eps) at least; so k^2 never falls below
    the larger root of m u^2 - u + eps = 0.

    Args:
        mean_fourth: m >= 1.
        eps: PolyNorm's.

    Raises:
        InputError: eps not above 0, or over 1 / (4 m), where rows may fade away from layer to
            layer.
    """
    require(eps > 0, f"eps={eps} must be above 0.")
    require(
        4 * mean_fourth * eps <= 1,
        f"eps={eps} must be at most {1 / (4 * mean_fourth):.3g} for this network: rows would fade"
        " away from layer to layer.",
    )
    return (1 + math.sqrt(1 - 4 * mean_fourth * eps)) / (2 * mean_fourth)
