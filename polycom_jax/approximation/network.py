"""Explicit feed-forward networks as data: what the theorems of arXiv 2411.03884 talk about.

A unit is x -> sum_i a_i relu(w . x + b)^i, with coefficients of its own, ascending. A layer is a
number of *copies* of one small block of units. Copies share a pattern of wires and differ in
numbers; an array that is the same in all copies is stored once. So the (N+1)^d local pieces of an
approximation are one stacked block, while sizes are those of the plain network it stands for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Bool, Float

from polycom_jax._errors import require

Matrix = Sequence[Sequence[float]] | Float[np.ndarray, "O I"]
"""[out, in], or the coefficients [units, order + 1] of a layer."""
Vector = Sequence[float] | Float[np.ndarray, " O"]
"""[out], or the coefficients a_0 ... a_r of a unit."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Affine:
    """z_c = sum_s W_cs x_s + b_c, from `sources` blocks of numbers x_s to `copies` blocks z_c.

    Either sources == copies, and block c reads block c alone; or one of the two is 1, and all
    blocks read the same numbers, or one reads them all. L = max(sources, copies) is the number of
    matrices.

    Attributes:
        weights: [1 or L, out, in]; a leading 1 stands for L equal matrices.
        biases: [1 or copies, out].
        wires: [out, in], which weights exist. One that exists may have the value 0 in some copies.
        biased: [out], which biases exist.
        sources: number of blocks that are read.
        copies: number of blocks that are made.
    """

    weights: Float[np.ndarray, "L O I"]
    biases: Float[np.ndarray, "C O"]
    wires: Bool[np.ndarray, "O I"]
    biased: Bool[np.ndarray, " O"]
    sources: int = field(default=1, metadata={"static": True})
    copies: int = field(default=1, metadata={"static": True})

    @property
    def links(self) -> int:
        """Number of matrices, stored or not."""
        return max(self.sources, self.copies)

    @property
    def size(self) -> int:
        """Number of weights and biases that exist, all copies counted."""
        return self.links * int(np.sum(self.wires)) + self.copies * int(np.sum(self.biased))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Layer:
    """Units: sum_i coeffs[..., i] relu(affine)^i.

    Attributes:
        affine: what the units see.
        coeffs: [1 or copies, out, r+1], ascending.
    """

    affine: Affine
    coeffs: Float[np.ndarray, "C O R+1"]

    @property
    def units(self) -> int:
        """Number of units, all copies counted."""
        return self.affine.copies * self.coeffs.shape[1]

    @property
    def size(self) -> int:
        """Weights, biases and nonzero coefficients, all copies counted."""
        used = np.any(self.coeffs != 0, axis=0)
        return self.affine.size + self.affine.copies * int(np.sum(used))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Network:
    """Hidden layers and an affine readout.

    Attributes:
        layers: the hidden layers; none of them makes the network affine.
        readout: the affine map at the end, with one copy.
        smoothness: a k for which the function is in W^{k,inf} of every bounded box: 1 for ReLU
            networks, infinity for polynomials. It is declared by whoever builds the network; the
            default of the constructors is what a single unit guarantees.
        condition: how much larger than a result the terms are that cancel to it, where a
            construction makes that large: so many roundings of a dtype are in the result.
    """

    layers: tuple[Layer, ...]
    readout: Affine
    smoothness: float = field(metadata={"static": True})
    condition: float = field(default=1.0, metadata={"static": True})

    @property
    def inputs(self) -> int:
        """Number of input variables."""
        first = self.layers[0].affine if self.layers else self.readout
        return first.weights.shape[2]

    @property
    def outputs(self) -> int:
        """Number of values that come out."""
        return self.readout.weights.shape[1]

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Units in the widest hidden layer; 0 for an affine network."""
        return max((layer.units for layer in self.layers), default=0)

    @property
    def size(self) -> int:
        """Number of weights, biases and coefficients of the plain feed-forward network.

        Those are counted that stand in the object: nonzero when the network was put together, or
        (in networks made of copies) part of the block. The latter may be 0 in single copies: a
        Taylor coefficient that happens to vanish is counted.
        """
        return sum(layer.size for layer in self.layers) + self.readout.size

    @property
    def largest_weight(self) -> float:
        """The largest absolute value of a weight, bias or coefficient."""
        maps = [*(layer.affine for layer in self.layers), self.readout]
        numbers = [m.weights for m in maps] + [m.biases for m in maps]
        numbers += [layer.coeffs for layer in self.layers]
        return max(float(np.abs(array).max(initial=0)) for array in numbers)


def affine(weights: Matrix, biases: Vector | None = None) -> Affine:
    """The map W x + b as data; what is zero does not exist.

    Args:
        weights: [out, in].
        biases: [out]; zero if left out.

    Raises:
        InputError: shapes that do not fit, or numbers that are not finite.
    """
    matrix = np.array(weights, np.float64)
    require(matrix.ndim == 2, f"weights must be a matrix [out, in], not of shape {matrix.shape}.")
    vector = np.zeros(len(matrix)) if biases is None else np.array(biases, np.float64)
    require(
        vector.shape == matrix.shape[:1],
        f"biases of shape {vector.shape} do not fit weights of shape {matrix.shape} [out, in].",
    )
    finite = bool(np.isfinite(matrix).all() and np.isfinite(vector).all())
    require(finite, "weights and biases must be finite.")
    return Affine(matrix[None], vector[None], matrix != 0, vector != 0)


def ascending(coeffs: Vector) -> Float[np.ndarray, " R+1"]:
    """The coefficients of a unit, float64; raises `InputError` for fewer than two."""
    require(len(coeffs) >= 2, f"coeffs={coeffs} must be two or more, ascending.")
    return np.array(coeffs, np.float64)


def linear(weights: Matrix, biases: Vector | None = None) -> Network:
    """The network without hidden layers, W x + b; to be composed with others."""
    return Network((), affine(weights, biases), math.inf)


def feed_forward(
    weights: Sequence[Matrix],
    biases: Sequence[Vector | None],
    coeffs: Sequence[Matrix],
    *,
    smoothness: float | None = None,
) -> Network:
    """A PolyReLU network from its numbers.

    Args:
        weights: one matrix [out, in] a hidden layer, and the readout's.
        biases: one vector [out] each, or None for zeros.
        coeffs: one matrix [units, order + 1] a hidden layer, ascending.
        smoothness: see `Network`; by default the lowest power that a unit has, i.e. i for relu^i.

    Returns:
        A network of `len(coeffs)` hidden layers.

    Raises:
        InputError: numbers of matrices or shapes that do not fit each other.
    """
    require(
        len(weights) == len(biases) == len(coeffs) + 1,
        f"{len(coeffs)} hidden layers need {len(coeffs) + 1} matrices and as many biases, not"
        f" {len(weights)} and {len(biases)}.",
    )
    maps = [affine(w, b) for w, b in zip(weights, biases, strict=True)]
    for k in range(1, len(maps)):
        made, read = maps[k - 1].weights.shape[1], maps[k].weights.shape[2]
        require(made == read, f"matrix {k} reads {read} numbers; the layer before it makes {made}.")
    layers = tuple(_layer(m, c) for m, c in zip(maps[:-1], coeffs, strict=True))
    if smoothness is None:
        smoothness = min((_lowest_power(layer) for layer in layers), default=math.inf)
    return Network(layers, maps[-1], smoothness)


def _layer(through: Affine, coeffs: Matrix) -> Layer:
    table, units = np.array(coeffs, np.float64), through.weights.shape[1]
    require(
        table.ndim == 2 and table.shape[0] == units and table.shape[1] >= 2,
        f"coefficients of shape {table.shape} must be [{units} units, order + 1] with order >= 1.",
    )
    require(bool(np.isfinite(table).all()), "coefficients must be finite.")
    return Layer(through, table[None])


def _lowest_power(layer: Layer) -> float:
    powers = np.any(layer.coeffs != 0, axis=(0, 1))[1:]
    return 1 + int(np.argmax(powers)) if powers.any() else math.inf
