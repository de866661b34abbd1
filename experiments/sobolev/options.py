"""What each study takes: the flags `--sobolev.*` of `python -m experiments.sobolev`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from polycom_jax._errors import InputError, require, unknown
from polycom_jax.approximation.targets import MAX_DIM, MAX_ORDER, TARGETS, Target, get_target
from polycom_jax.table import ACTIVATIONS

S = TypeVar("S")


@dataclass(frozen=True)
class Command(Generic[S]):
    """A study and where its files go.

    Attributes:
        sobolev: the study.
        workdir: folder for CSV, JSON, report, plots, and what resuming needs.
    """

    sobolev: S
    workdir: str


@dataclass(frozen=True)
class TrainOptions:
    """Networks of equal size with different activations, fitted to targets of each smoothness.

    Attributes:
        activations: of the networks, by name from the project's table.
        sizes: numbers of parameters; each network is the widest with at most so many.
        targets: what is fitted, NAME:n for the target NAME of norm 1 in W^{n,inf}; each is shifted
            and scaled to mean 0 and variance 1, in which units errors are given.
        seeds: independent fits, of which intervals are made; at least 2.
        dim: dimension d of the targets.
        layers: hidden layers.
        steps: of Adam, cosine decay to 0 behind a warm-up.
        batch_size: points a step.
        points: that batches are drawn from.
        learning_rates: candidates, ascending; the best is chosen for each network by its fits of
            `selection`. Where it is the first or the last, the range is extended.
        selection: the target that learning rates are chosen on, NAME:n; none of `targets`.
        cells: of the grid that errors are measured on, on each axis; 15 points each.
        save_every_s: seconds between two saved states; 0: every time there is something to save.
    """

    activations: tuple[str, ...] = (
        "relu",
        "relu2",
        "gelu",
        "silu",
        "swiglu",
        "tanh",
        "poly_relu",
        "poly_norm",
    )
    sizes: tuple[int, ...] = (100, 300, 900)
    targets: tuple[str, ...] = ("spline:1", "spline:2", "spline:3", "random:2")
    seeds: int = 8
    dim: int = 2
    layers: int = 2
    steps: int = 2000
    batch_size: int = 256
    points: int = 16384
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    selection: str = "runge:2"
    cells: int = 8
    save_every_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("activations", "sizes", "targets"):
            values = getattr(self, name)
            require(bool(values), f"sobolev.{name} is empty; leave it out for the default.")
            require(len(set(values)) == len(values), f"sobolev.{name}={values} repeats itself.")
        for activation in self.activations:
            if activation not in ACTIVATIONS:
                raise unknown("activation", activation, ACTIVATIONS)
        _at_least(self, 1, "dim", "layers", "steps", "batch_size", "points", "cells", "sizes")
        _at_least(self, 2, "seeds")  # an interval needs two
        require(self.dim <= MAX_DIM, f"sobolev.dim={self.dim} must be at most {MAX_DIM}.")
        require(
            len(self.learning_rates) >= 4
            and list(self.learning_rates) == sorted(set(self.learning_rates))
            and self.learning_rates[0] > 0
            and math.isfinite(self.learning_rates[-1]),
            f"sobolev.learning_rates={self.learning_rates} must be four or more positive numbers,"
            " ascending.",
        )
        require(
            self.selection not in self.targets,
            f"sobolev.selection={self.selection} is among the targets; learning rates are chosen on"
            " another one, or they would be fitted to the result.",
        )
        require(self.save_every_s >= 0, f"sobolev.save_every_s={self.save_every_s} is negative.")
        for name in (*self.targets, self.selection):
            named_target(name, self.dim)


def named_target(name: str, dim: int) -> Target:
    """The target "NAME:n".

    Raises:
        InputError: it is not of that form, or there is no such target.
    """
    kind, colon, order = name.partition(":")
    if kind not in TARGETS:
        raise unknown("target", kind, TARGETS)
    if not (colon and order.isdecimal() and 1 <= int(order) <= MAX_ORDER):
        raise InputError(
            f"target {name!r} must be NAME:n with n from 1 to {MAX_ORDER}, such as {kind}:2."
        )
    return get_target(kind, order=int(order), dim=dim)


def _at_least(options: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, Sequence) else (value,):
            require(number >= least, f"sobolev.{name}={number} must be at least {least}.")


QUICK_TRAIN = TrainOptions(
    sizes=(100,), seeds=2, steps=150, learning_rates=(3e-2, 1e-1, 3e-1, 1.0), points=2048, cells=4
)
"""Well under a minute; too short to conclude from."""
