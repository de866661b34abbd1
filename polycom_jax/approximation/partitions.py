"""Partitions of unity on a grid, as networks: tensor products of bumps of one variable.

In the local variable z = N x - m, each partition has a bump phi(z) with sum_m phi(z - m) = 1, and a
coordinate t(z) in [0, 1] which is span (t - 1/2) = z on the bump's support and constant far away.
Products of both are made of numbers in [0, 1] only, so nothing grows with the distance from a cell;
and the units of a bump's last layer are exactly 0 outside its support, whatever the dtype, so that
the many cells far away add no rounding.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from polycom_jax._errors import unknown
from polycom_jax.approximation.network import Matrix, Network, Vector, feed_forward

PartitionName = Literal["trapezoid", "spline"]


@dataclass(frozen=True)
class Partition:
    """A partition of unity on the grid of spacing 1.

    Attributes:
        bump: z -> phi(z) >= 0.
        coordinate: z -> t(z) in [0, 1], of the same depth.
        span: z = span (t - 1/2) on the support.
        radius: half of the support, at most 1: only bumps of nodes in [0, 1] reach into it.
        smoothness: the k for which phi is in W^{k,inf}.
    """

    bump: Network
    coordinate: Network
    span: float
    radius: float
    smoothness: int


def _relu_layers(first: Matrix, shift: Vector, second: Matrix, offset: Vector) -> Network:
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
        smoothness=1,
    )


def _spline() -> Partition:
    """phi = 9/2 (c(1) - 3 c(2/3) + 3 c(1/3)) with c(k) = relu(k - |z|)^3, a C^2 cubic spline.

    It is s(1 - |z|) for the cubic spline s that climbs from 0 to 1 over knots at 0, 1/3, 2/3, 1. As
    s(q) + s(1 - q) = 1, neighbours add up to 1; as s' = s'' = 0 at both ends, the kinks of |z| at 0
    and of the units at 1 do not show in phi' and phi''.

    t = relu(7/8 - relu(3/2 - z)/4 + relu(-3/2 - z)/4) clips z/4 + 1/2 to [1/8, 7/8]. Its kinks at
    -3/2 and 3/2 are outside the support, and it is never 0: there, units of products have theirs.
    """
    knots, cube = np.array([1.0, 2 / 3, 1 / 3]), (0.0, 0.0, 0.0, 1.0)
    relu = np.tile((0.0, 1.0), (2, 1))
    bump = feed_forward(
        [[[1.0], [-1.0]], -np.ones((3, 2)), [[4.5, -13.5, 13.5]]],
        [None, knots, None],
        [relu, np.tile(cube, (3, 1))],
        smoothness=3,
    )
    coordinate = feed_forward(
        [[[-1.0], [-1.0]], [[-0.25, 0.25]], [[1.0]]],
        [[1.5, -1.5], [0.875], None],
        [relu, relu[:1]],
        smoothness=3,  # of its products with the bump, for which alone it is made
    )
    return Partition(bump, coordinate, span=4.0, radius=1.0, smoothness=3)


_PARTITIONS = {"trapezoid": _trapezoid, "spline": _spline}


def partition(name: PartitionName) -> Partition:
    """The partition called `name`: `trapezoid` (paper; W^{1,inf}) or `spline` (C^2, W^{3,inf}).

    Raises:
        InputError: an unknown name.
    """
    if name not in _PARTITIONS:
        raise unknown("partition of unity", name, _PARTITIONS)
    return _PARTITIONS[name]()
