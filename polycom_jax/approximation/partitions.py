"""Partitions of unity on a grid, as networks: tensor products of bumps of one variable.

In the local variable z = N x - m, each partition has a bump phi(z) with sum_m phi(z - m) = 1, and a
coordinate t(z) in [0, 1] which is span (t - 1/2) = z on the bump's support and constant far away.
Products of both are made of numbers in [0, 1] only, so nothing grows with the distance from a cell.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from polycom_jax._errors import unknown
from polycom_jax.approximation.network import Network, feed_forward

PartitionName = Literal["trapezoid", "spline"]


@dataclass(frozen=True)
class Partition:
    """A partition of unity on the grid of spacing 1.

    Attributes:
        bump: z -> phi(z) >= 0.
        coordinate: z -> t(z) in [0, 1], of the same depth.
        span: z = span (t - 1/2) on the support.
        radius: half of the support.
        beyond: how many nodes outside [0, 1] have bumps that reach into it, at either end.
        smoothness: the k for which phi is in W^{k,inf}.
    """

    bump: Network
    coordinate: Network
    span: float
    radius: float
    beyond: int
    smoothness: int


def _relu_layers(first: list, shift: list, second: list, offset: list) -> Network:
    units = [np.tile((0.0, 1.0), (len(first), 1)), [[0.0, 1.0]]]
    return feed_forward([first, second, [[1.0]]], [shift, offset, None], units)


def _trapezoid() -> Partition:
    """phi = relu(1 - relu(3z - 1) - relu(-3z - 1)): 1 for |z| <= 1/3 and exactly 0 from 2/3 on.

    t = relu(1 - relu(1/2 - 3z/4)) clips 3z/4 + 1/2 to [0, 1]. All units are ReLUs.
    """
    return Partition(
        bump=_relu_layers([[3.0], [-3.0]], [-1.0, -1.0], [[-1.0, -1.0]], [1.0]),
        coordinate=_relu_layers([[-0.75]], [0.5], [[-1.0]], [1.0]),
        span=4 / 3,
        radius=2 / 3,
        beyond=0,
        smoothness=1,
    )


def _spline() -> Partition:
    """phi is the cubic B-spline of the knots -2 ... 2, all of whose units are relu^3.

    It is evaluated at S(z), which is z for |z| <= 2 and levels off at -3 and 3, as C^2 splines do,
    through knots at 2, 3, 4 and their negatives. So phi is 0 far away up to rounding of S, and
    large cubes do not have to cancel. t = (S + 3) / 6.
    """
    knots, jumps = np.array([-4.0, -3, -2, 2, 3, 4]), np.array([1.0, -2, 1, -1, 2, -1]) / 6
    cube = (0.0, 0.0, 0.0, 1.0)
    level = np.ones((6, 1)), -knots, np.tile(cube, (6, 1))
    ends, binomials = np.arange(-2.0, 3), np.array([1.0, -4, 6, -4, 1]) / 6

    def after(rows: np.ndarray, biases: np.ndarray, units: np.ndarray, out: np.ndarray) -> Network:
        weights, shifts = [level[0], rows[:, None] * jumps, out[None]], [level[1], biases, None]
        return feed_forward(weights, shifts, [level[2], units], smoothness=3)

    return Partition(
        bump=after(np.ones(5), -3 - ends, np.tile(cube, (5, 1)), binomials),
        coordinate=after(np.ones(1) / 6, np.zeros(1), np.array([[0.0, 1.0]]), np.ones(1)),
        span=6.0,
        radius=2.0,
        beyond=1,
        smoothness=3,
    )


_PARTITIONS = {"trapezoid": _trapezoid, "spline": _spline}


def partition(name: PartitionName) -> Partition:
    """The partition called `name`: `trapezoid` (paper; W^{1,inf}) or `spline` (C^2, W^{3,inf}).

    Raises:
        InputError: an unknown name.
    """
    if name not in _PARTITIONS:
        raise unknown("partition of unity", name, _PARTITIONS)
    return _PARTITIONS[name]()
