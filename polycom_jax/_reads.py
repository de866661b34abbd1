"""What a value in a program may read of an array whose axes are followed, and how that moves."""

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple


class Reach(Enum):
    """Of an axis whose elements are no longer apart."""

    UNKNOWN = "perhaps other elements along the axis"
    MIXED = "other elements along the axis"


class Place(NamedTuple):
    """Where an axis lies: element i of it is what stands at i = index // stride % size.

    Attributes:
        dim: of the value; a negative one is a loop around it, which runs along the axis.
        stride: above 1 where the dimension has other axes merged behind this one.
        size: of the axis.
    """

    dim: int
    stride: int
    size: int


Reads = Mapping[int, Place | Reach]
"""Followed axis -> where its own element stands, or what else is read; {}: nothing is read."""


def of_axes(shape: tuple[int, ...], axes: range) -> Reads:
    """Those of an array itself of which these axes are followed."""
    return {axis: Place(axis, 1, shape[axis]) for axis in axes}


def joined(*several: Reads) -> Reads:
    """What is read by a value that takes the same element of several."""
    return {
        axis: _agreed({reads[axis] for reads in several if axis in reads})
        for axis in sorted({axis for reads in several for axis in reads})
    }


def _agreed(found: set[Place | Reach]) -> Place | Reach:
    places = [each for each in found if isinstance(each, Place)]
    if Reach.MIXED in found or len(places) > 1:
        return Reach.MIXED
    return Reach.UNKNOWN if Reach.UNKNOWN in found else places[0]


def unknown(reads: Reads) -> Reads:
    """After an operation that is not followed."""
    return {
        axis: Reach.MIXED if place is Reach.MIXED else Reach.UNKNOWN
        for axis, place in reads.items()
    }


def steered(reads: Reads) -> Reads:
    """What a branch or the end of a loop reads: it may change rounding alone, or everything."""
    return dict.fromkeys(reads, Reach.UNKNOWN)


def moved(reads: Reads, to: Callable[[int], int | None], lost: Reach = Reach.MIXED) -> Reads:
    """With its dimensions elsewhere; an axis along one that goes to None is `lost`."""
    return _redrawn(reads, lambda dim: dim if dim < 0 else to(dim), lost)


def reshaped(reads: Reads, old: tuple[int, ...], new: tuple[int, ...]) -> Reads:
    """The same elements in the same order, in another shape."""

    def one(place: Place | Reach) -> Place | Reach:
        if isinstance(place, Reach) or place.dim < 0:
            return place
        apart = place.stride * math.prod(old[place.dim + 1 :])
        for dim in range(len(new)):
            behind = math.prod(new[dim + 1 :])
            stride = apart // behind
            if apart % behind == 0 and new[dim] % max(1, stride * place.size) == 0 < stride:
                return Place(dim, stride, place.size)
        return Reach.MIXED

    return {axis: one(place) for axis, place in reads.items()}


def into_loop(reads: Reads, depth: int) -> Reads:
    """Of one slice along the first dimension, which a loop of this (negative) number runs over."""
    return _redrawn(reads, lambda dim: depth if dim == 0 else dim - 1 if dim > 0 else dim)


def out_of_loop(reads: Reads, depth: int, *, stacked: bool) -> Reads:
    """Of what the slices make: stacked along a first dimension, or carried from one to the next."""
    if stacked:
        return _redrawn(reads, lambda dim: 0 if dim == depth else dim + 1 if dim >= 0 else dim)
    return _redrawn(reads, lambda dim: None if dim == depth else dim)


def _redrawn(reads: Reads, to: Callable[[int], int | None], lost: Reach = Reach.MIXED) -> Reads:
    def one(place: Place | Reach) -> Place | Reach:
        if isinstance(place, Reach):
            return place
        dim = to(place.dim)
        return lost if dim is None else place._replace(dim=dim)

    return {axis: one(place) for axis, place in reads.items()}
