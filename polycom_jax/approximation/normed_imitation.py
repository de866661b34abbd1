"""PolyNorm networks that imitate PolyReLU networks, and so ReLU networks.

One unit at a time. Let a row have the numbers 1 and L t with a large L. PolyNorm's square of L t,
beside its linear term of 1, is L^2 t^2 sqrt((1 + L^2 t^2) / (1 + L^4 t^4)), which is L |t| up to 1.
So one layer makes relu(t) = (t + |t|) / 2 with an error of 1 / (2 L), and squares make powers of it
exactly. Statement and proof: experiments/results/sobolev/polynorm_theorem.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from polycom_jax._errors import require
from polycom_jax.activations.inputs import EPS
from polycom_jax.approximation.combine import flatten
from polycom_jax.approximation.network import Layer, Network
from polycom_jax.approximation.normed_network import PolyNormNetwork, Rows
from polycom_jax.approximation.normed_sobolev import PEAK, SQUARE

BOTH = (0.0, 1.0, 1.0)
"""Coefficients of a layer that makes a ReLU: the row and its square."""

LEAST_STEEPNESS = 10.0
"""Of L: relu(t) is then within 0.05 of itself for |t| <= 1, which the bounds count on."""

STRETCH = 1 + 1 / (2 * LEAST_STEEPNESS)


@dataclass(frozen=True)
class Unit:
    """A unit of the imitated network.

    Attributes:
        weights: of the scaled outputs of the layer before.
        bias: added to them.
        radius: the unit's input is at most so large; it is divided by it.
        coeffs: c_0 ... c_r for the input divided by `radius`.
        range: a bound of all partial sums of its output and its imitation's, by which they are
            divided.
    """

    weights: Float[np.ndarray, " I"]
    bias: float
    radius: float
    coeffs: Float[np.ndarray, " R+1"]
    range: float

    @property
    def error(self) -> float:
        """Its output's error, times L, for an input without error."""
        powers = np.arange(1, len(self.coeffs))
        return float(np.abs(self.coeffs[1:]) @ (powers * STRETCH ** (powers - 1))) / 2

    @property
    def lipschitz(self) -> float:
        """Of the output, undivided, in the input, undivided."""
        return 2 * self.error / self.radius


def poly_norm_imitation(
    net: Network, error: float, *, radius: float = 1.0, peak: float = PEAK, eps: float = EPS
) -> PolyNormNetwork:
    """A PolyNorm network within `error` of a PolyReLU network on [-radius, radius]^d.

    With m the most numbers that a layer of `net` reads or makes, it has width 4 m + 5, a layer for
    each power of each unit and one more, and weights that grow like error^-2 at most. `eps`
    does not matter: weights keep rows large.

    Args:
        net: any network; one made of copies is written out.
        error: the largest error of an output, in exact arithmetic and but for the share of about
            peak^-4 that `poly_norm_bound` has too.
        radius: half the edge of the box of inputs.
        peak: the last row's first number beside the others, at least 10.
        eps: PolyNorm's, at most 1e-2.

    Raises:
        InputError: numbers out of range, or a dense form above `DENSE_LIMIT`.

        >>> from polycom_jax.approximation import feed_forward
        >>> relu = feed_forward([[[1.0]], [[1.0]]], [None, None], [[[0.0, 1.0]]])
        >>> net = poly_norm_imitation(relu, 1e-3)
        >>> net.depth, net.width
        (2, 9)
    """
    require(0 < error < math.inf, f"error={error} must be positive, and finite.")
    require(0 < radius < math.inf, f"radius={radius} must be positive, and finite.")
    require(peak >= 10 and math.isfinite(peak), f"peak={peak} must be 10 or more, and finite.")
    require(0 < eps <= 1e-2, f"eps={eps} must be positive, and at most 0.01.")
    net = flatten(net)
    layers = _units(net, radius)
    steepness = _steepness(net, layers, error)
    slots = max(net.inputs, *(len(units) for units in layers), 0)
    registers = Registers(slots)
    stages = [*_stages(registers, layers, steepness), _last(registers, peak)]
    enter = np.zeros((registers.count, 1 + net.inputs))
    enter[registers.one, 0] = 1
    enter[registers.read[: net.inputs], 1 + np.arange(net.inputs)] = 1 / radius
    entry = math.sqrt(registers.width) * stages[0].forms @ enter
    scales = (
        np.array([unit.range for unit in layers[-1]]) if layers else np.full(net.inputs, radius)
    )
    final = net.readout.weights[0] * scales
    out = peak**2 / math.sqrt(registers.width) * stages[-1].after[registers.read[: len(scales)]]
    pairs = zip(stages[1:], stages[:-1], strict=True)
    maps = np.array([stage.forms @ before.after for stage, before in pairs])
    return PolyNormNetwork(
        entry=entry[:, 1:],
        shift=entry[:, 0],
        weights=maps.reshape(-1, registers.width, registers.width),
        coeffs=np.array([stage.coeffs for stage in stages]),
        readout=final @ out,
        offset=net.readout.biases[0],
        eps=eps,
    )


def _units(net: Network, radius: float) -> list[list[Unit]]:
    """The units with their ranges, by interval arithmetic; imitations stay in them, too."""
    scales, found = np.full(net.inputs, radius), []
    for layer in net.layers:
        units = [_unit(layer, j, scales) for j in range(layer.units)]
        scales = np.array([unit.range for unit in units])
        found.append(units)
    return found


def _unit(layer: Layer, j: int, scales: Float[np.ndarray, " I"]) -> Unit:
    weights, bias = layer.affine.weights[0, j] * scales, float(layer.affine.biases[0, j])
    radius = float(np.abs(weights).sum()) + abs(bias) or 1.0
    coeffs = layer.coeffs[0, j] * radius ** np.arange(layer.coeffs.shape[-1])
    reach = float(np.abs(coeffs) @ STRETCH ** np.arange(len(coeffs)))
    return Unit(weights, bias, radius, coeffs, reach or 1.0)


def _steepness(net: Network, layers: Sequence[Sequence[Unit]], error: float) -> float:
    """L for that error: all errors are proportional to 1 / L."""
    errors = np.zeros(net.inputs)
    for layer, units in zip(net.layers, layers, strict=True):
        incoming = np.abs(layer.affine.weights[0]) @ errors
        own = np.array([unit.error for unit in units])
        errors = own + np.array([unit.lipschitz for unit in units]) * incoming
    final = np.abs(net.readout.weights[0]) @ errors
    return max(LEAST_STEEPNESS, float(final.max(initial=0)) / error)


@dataclass(frozen=True)
class Registers:
    """The numbers that a row stands for: 1, what a layer reads, what it has made, a power and p.

    Attributes:
        slots: the most numbers that a layer reads or makes.
    """

    slots: int

    one = 0

    @property
    def read(self) -> np.ndarray:
        """Outputs of the layer before, each divided by its range."""
        return 1 + np.arange(self.slots)

    @property
    def made(self) -> np.ndarray:
        """Outputs of this layer so far, likewise."""
        return 1 + self.slots + np.arange(self.slots)

    @property
    def relu(self) -> int:
        """p = relu(t) of the unit at work."""
        return 1 + 2 * self.slots

    @property
    def power(self) -> int:
        """p^i."""
        return 2 + 2 * self.slots

    @property
    def count(self) -> int:
        """Of all of them."""
        return 3 + 2 * self.slots

    @property
    def width(self) -> int:
        """Of the rows that carry them, in any kind of stage."""
        return 5 + 4 * self.slots


@dataclass(frozen=True)
class Stage:
    """A hidden layer.

    Attributes:
        forms: [width, registers], registers to the row.
        coeffs: of its PolyNorm.
        after: [registers, width], what comes out of PolyNorm to the registers, scaled so that the
            first one is at least the square root of the width.
    """

    forms: Float[np.ndarray, "w R"]
    coeffs: tuple[float, ...]
    after: Float[np.ndarray, "R w"]


def _stages(
    registers: Registers, layers: Sequence[Sequence[Unit]], steepness: float
) -> Iterator[Stage]:
    """A ReLU for each unit, and a product for each further power; layer by layer."""
    for units in layers:
        for j, unit in enumerate(units):
            shares = unit.coeffs / unit.range
            top = int(np.max(np.nonzero(unit.coeffs)[0], initial=1))
            for power in range(1, top + 1):
                keep = np.eye(registers.count)
                keep[registers.made[j], registers.power] = shares[power]
                keep[registers.made[j], registers.one] = shares[0] if power == 1 else 0
                if power == top and j == len(units) - 1:
                    keep = _next_layer(registers) @ keep
                yield (
                    _relu(registers, unit, steepness, keep)
                    if power == 1
                    else _product(registers, power, keep)
                )


def _next_layer(registers: Registers) -> Float[np.ndarray, "R R"]:
    """What was made is what the next layer reads."""
    turn = np.eye(registers.count)
    turn[registers.read] = turn[registers.made]
    turn[registers.made] = 0
    return turn


def _relu(
    registers: Registers, unit: Unit, steepness: float, update: Float[np.ndarray, "R R"]
) -> Stage:
    """p = relu(t) and the first power of it, t = (w h + b) / radius; others are carried."""
    rows, carried = Rows(BOTH), np.concatenate([registers.read, registers.made])
    small = 1 / math.sqrt(2 * registers.slots)
    forms = np.zeros((2 + len(carried), registers.count))
    forms[0, registers.one] = 1
    forms[1 + np.arange(len(carried)), carried] = small
    forms[-1, registers.read[: len(unit.weights)]] = steepness * unit.weights / unit.radius
    forms[-1, registers.one] = steepness * unit.bias / unit.radius
    linear = np.zeros((registers.count, len(forms)))
    linear[registers.one, 0] = 1
    linear[carried, 1 + np.arange(len(carried))] = 1 / small
    squares = np.zeros_like(linear)
    both = [registers.relu, registers.power]
    linear[both, -1] = squares[both, -1] = 1 / (2 * steepness)
    found = rows.linear(linear) + rows.squares(squares)
    gain = math.sqrt(4 + 2 * steepness**2 + registers.width)
    row = _padded(registers, rows.enter(forms), 0)
    return Stage(row, BOTH, _padded(registers, gain * update @ found, 1))


def _product(registers: Registers, power: int, update: Float[np.ndarray, "R R"]) -> Stage:
    """p^power = p p^(power - 1); others are carried."""
    forms, found = _carry(registers, 1.0)
    forms[-2:, registers.relu], forms[-2:, registers.power] = 1, [1, -1]
    found[registers.power, -2:] = [1 / 4, -1 / 4]
    largest = STRETCH + STRETCH ** (power - 1)  # of the row, beside its first number
    gain = math.sqrt(registers.width * (largest**4 + 1))
    return Stage(forms, SQUARE, gain * update @ Rows(SQUARE).squares(found))


def _last(registers: Registers, peak: float) -> Stage:
    """The row that is read out: its first number is far above the others."""
    forms, found = _carry(registers, peak)
    return Stage(forms, SQUARE, Rows(SQUARE).squares(found))


def _carry(
    registers: Registers, first: float
) -> tuple[Float[np.ndarray, "w R"], Float[np.ndarray, "R w"]]:
    """Forms u + 1 and u - 1, whose squares differ by 4 u, behind the first number; two are free."""
    carried = np.array([*registers.read, *registers.made, registers.relu])
    plus = 1 + np.arange(len(carried))
    minus = plus + len(carried)
    forms = np.zeros((registers.width, registers.count))
    forms[0, registers.one] = first
    forms[plus, carried] = forms[minus, carried] = 1
    forms[plus, registers.one], forms[minus, registers.one] = 1, -1
    found = np.zeros((registers.count, registers.width))
    found[registers.one, 0] = 1
    found[carried, plus], found[carried, minus] = 1 / 4, -1 / 4
    return forms, found


def _padded(registers: Registers, array: np.ndarray, axis: int) -> np.ndarray:
    """The array with zeros up to the width on an axis."""
    room = [(0, 0), (0, 0)]
    room[axis] = (0, registers.width - array.shape[axis])
    return np.pad(array, room)
