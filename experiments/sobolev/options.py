"""What the studies of trained networks take, and what all take: the flags of the program."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from experiments.terminal.checks import at_least
from experiments.terminal.flags import NO_PREFIX
from polycom_jax._errors import InputError, require, unknown
from polycom_jax._fields import PathText, check_fields
from polycom_jax.approximation.bounds import cell_size, size_formula
from polycom_jax.approximation.targets import MAX_DIM, MAX_ORDER, TARGETS, Target, get_target
from polycom_jax.table import ACTIVATIONS

FREE = ("save_every_s", "memory", "beside")
"""Options of trained networks that results do not depend on."""


@dataclass(frozen=True)
class Options:
    """What a study takes; each is a dataclass of its own."""


@dataclass(frozen=True)
class Command:
    """A study as it is called.

    Attributes:
        sobolev: the study.
        out: folder for CSV, JSON, report, plots, and what resuming needs.
        json: also write the study's JSON to this file, or to stdout (-).
    """

    sobolev: Annotated[Options, NO_PREFIX]
    out: PathText
    json: PathText | None = None


@dataclass(frozen=True)
class TrainOptions(Options):
    """Networks of equal size with different activations, fitted to targets of each smoothness.

    Attributes:
        activations: activations of the networks; --list prints them.
        sizes: numbers of parameters; of each activation, the widest network with at most so many is
            fitted.
        targets: functions to fit: NAME:n is the target NAME of norm 1 in W^{n,inf}, shifted and
            scaled to mean 0 and variance 1; errors are in these units.
        seeds: independent fits of each network, at least 2; intervals are over them.
        dim: dimension d of the targets.
        layers: hidden layers.
        steps: updates by Adam; warm-up, then cosine decay to 0.
        loss: what is trained: l2, the squared error of values; h1, that and the squared error of
            gradients (Sobolev training). Learning rates are chosen by the same.
        batch_size: points in a batch.
        points: training points, of which batches are drawn.
        learning_rates: learning rates to try, ascending. On `selection`, the one with the fewest
            failed fits is taken, and among those the one with the lowest error; where it is the
            first or the last, more are tried beyond it.
        selection: targets on which learning rates are chosen, NAME:n; those among `targets` are
            left out. With one alone, a rate may be chosen that fails on others.
        cells: cells on each axis of the grid on which errors are measured, with 15 points in each
            cell.
        memory: bytes for fitting one network, all fits at once: parameters, gradients, Adam's
            moments and points.
        save_every_s: seconds between two saved states; 0: save whenever possible.
        beside: the CSV of a study of the same networks with the other loss; the report pairs its
            runs with these.
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
    loss: Literal["l2", "h1"] = "l2"
    batch_size: int = 256
    points: int = 16384
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    selection: tuple[str, ...] = ("runge:2", "waves:2", "bumps:2", "waves:3")
    cells: int = 8
    memory: int = 2**30
    save_every_s: float = 30.0
    beside: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self, wide=("memory",))
        distinct(self, "activations", "sizes", "targets", "selection")
        for activation in self.activations:
            if activation not in ACTIVATIONS:
                raise unknown("activation", activation, ACTIVATIONS)
        counts = ("dim", "layers", "steps", "batch_size", "points", "cells", "sizes", "memory")
        at_least(self, 1, *counts)
        at_least(self, 2, "seeds")  # an interval needs two
        require(self.dim <= MAX_DIM, f"dim={self.dim} must be at most {MAX_DIM}.")
        require(
            len(self.learning_rates) >= 4
            and list(self.learning_rates) == sorted(set(self.learning_rates))
            and self.learning_rates[0] > 0
            and math.isfinite(self.learning_rates[-1]),
            f"learning_rates={self.learning_rates} must be four or more positive numbers,"
            " ascending.",
        )
        require(
            len(self.chosen_on) > 0,
            f"selection={self.selection}: all of it is among the targets; learning rates are chosen"
            " on other ones, or they would be fitted to the result.",
        )
        require(
            0 <= self.save_every_s < math.inf,
            f"save_every_s={self.save_every_s} must be 0 or more, and finite.",
        )
        for name in (*self.targets, *self.selection):
            named_target(name, self.dim)

    @property
    def chosen_on(self) -> tuple[str, ...]:
        """The targets that learning rates are chosen on."""
        return tuple(name for name in self.selection if name not in self.targets)


@dataclass(frozen=True)
class RefineOptions(TrainOptions):
    """Networks trained from a construction, from the same wires at random, and MLPs of that size.

    The construction is Theorem 3's of the most cells with at most so many numbers as `sizes` say,
    for each target; all targets have the same n. Activations are those of the MLPs.
    """

    activations: tuple[str, ...] = ("poly_relu", "gelu")
    sizes: tuple[int, ...] = (100, 200, 400)
    targets: tuple[str, ...] = ("spline:2", "random:2", "bumps:2")
    selection: tuple[str, ...] = ("runge:2", "waves:2")
    dim: int = 1
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    cells: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (*self.targets, *self.chosen_on)
        require(
            len({named_target(name, self.dim).order for name in names}) == 1,
            f"targets={self.targets} and selection={self.selection} must have the"
            " same n: it is the construction's.",
        )
        for size in self.sizes:
            self.construction(size)

    @property
    def order(self) -> int:
        """n of all targets."""
        return named_target(self.targets[0], self.dim).order

    def construction(self, size: int) -> int:
        """N, the most cells on an axis with which the construction has at most `size` numbers."""
        nodes = math.floor((size / cell_size(self.order, self.dim)) ** (1 / self.dim) + 1e-9)
        require(
            nodes >= 2,
            f"sizes: {size} numbers are too few for a construction with"
            f" n={self.order} in dimension {self.dim}; the smallest has"
            f" {size_formula(self.order, self.dim, 1)}.",
        )
        return nodes - 1


@dataclass(frozen=True)
class SamplesOptions(TrainOptions):
    """Networks of one size, trained on more and more points: what a sample is worth.

    Attributes:
        samples: training points, ascending; the first so many of the same ones.
    """

    sizes: tuple[int, ...] = (300,)
    targets: tuple[str, ...] = ("spline:2", "spline:3", "random:2")
    samples: tuple[int, ...] = (32, 128, 512, 2048, 8192)
    points: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "samples")
        distinct(self, "samples")
        require(
            max(self.samples) <= self.points,
            f"samples={self.samples} must be at most points={self.points}.",
        )
        require(len(self.sizes) == 1, f"sizes={self.sizes} must be one: points vary here.")


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


def distinct(options: object, *names: str) -> None:
    """Refuses fields that are empty or repeat themselves."""
    for name in names:
        values = getattr(options, name)
        require(bool(values), f"{name} is empty; leave it out for the default.")
        require(len(set(values)) == len(values), f"{name}={values} repeats itself.")


def at_most(options: object, most: int, *names: str) -> None:
    """Refuses fields with a number above `most`."""
    for name in names:
        for number in getattr(options, name):
            require(number <= most, f"{name}={number} must be at most {most}.")


QUICK_TRAIN = TrainOptions(
    sizes=(100,), seeds=2, steps=150, learning_rates=(3e-2, 1e-1, 3e-1, 1.0), points=2048, cells=4
)
QUICK_REFINE = RefineOptions(
    activations=("gelu",),
    targets=("spline:2", "random:2"),
    sizes=(100,),
    seeds=2,
    steps=150,
    learning_rates=(1e-3, 1e-2, 1e-1, 1.0),
    points=2048,
    cells=16,
)
QUICK_SAMPLES = SamplesOptions(
    activations=("gelu", "poly_norm"),
    targets=("random:2",),
    samples=(32, 512),
    seeds=2,
    steps=150,
    learning_rates=(1e-3, 1e-2, 1e-1, 1.0),
    points=512,
    cells=4,
)
"""Well under a minute each; the training is too short to conclude from."""
