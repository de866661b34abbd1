"""What the studies of constructed networks take."""

from dataclasses import dataclass

from experiments.sobolev.options import Options, at_most, distinct
from experiments.terminal.checks import at_least
from polycom_jax._errors import require, unknown
from polycom_jax._fields import check_fields
from polycom_jax.approximation.targets import MAX_DIM, MAX_ORDER, TARGETS


@dataclass(frozen=True)
class RatesOptions(Options):
    """Constructed networks over a range of N: how fast they converge, and what they cost.

    Attributes:
        orders: n of W^{n,inf}: number of derivatives of the target that the networks use.
        dims: dimensions d of the target.
        target: function to approximate, of norm 1 in W^{n,inf}. spline has |D^m f| = 1 for |m| = n,
            and errors that fall evenly where N are powers of 2.
        cells_1d: cells N on each axis for d = 1, ascending.
        cells_2d: cells N on each axis for d = 2.
        cells_3d: cells N on each axis for d = 3.
        spread: further targets for d = 1, also with `uneven` cells, to see what slopes depend on.
        uneven: cells N that are not powers of 2, ascending.
        memory: bytes for the numbers of one network.
    """

    orders: tuple[int, ...] = (1, 2, 3, 4)
    dims: tuple[int, ...] = (1, 2, 3)
    target: str = "spline"
    cells_1d: tuple[int, ...] = (8, 16, 32, 64, 128)
    cells_2d: tuple[int, ...] = (8, 16, 32, 64)
    cells_3d: tuple[int, ...] = (4, 8)
    spread: tuple[str, ...] = ("waves", "runge", "bumps", "random")
    uneven: tuple[int, ...] = (7, 13, 29, 57, 111)
    memory: int = 2**30

    def __post_init__(self) -> None:
        check_fields(self, wide=("memory",))
        distinct(self, "orders", "dims")
        at_least(self, 1, "orders", "dims", "cells_1d", "cells_2d", "cells_3d", "memory")
        at_most(self, MAX_ORDER, "orders")
        at_most(self, MAX_DIM, "dims")
        for name in (self.target, *self.spread):
            if name not in TARGETS:
                raise unknown("target", name, TARGETS)
        named = {f"cells_{d}d": self.cells(d) for d in self.dims} | {"uneven": self.uneven}
        for name, cells in named.items():
            require(
                len(cells) >= 2 and list(cells) == sorted(set(cells)),
                f"{name}={cells} must be two or more, ascending: a slope is wanted.",
            )

    def cells(self, d: int) -> tuple[int, ...]:
        """N for dimension d."""
        return {1: self.cells_1d, 2: self.cells_2d, 3: self.cells_3d}[d]


@dataclass(frozen=True)
class ImitateOptions(Options):
    """ReLU networks that imitate PolyReLU networks within eps.

    Attributes:
        eps: errors to reach, descending.
        iterates: how many times 1 - 2 x^2 is composed with itself: deeper networks.
    """

    eps: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
    iterates: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        check_fields(self)
        for eps in self.eps:
            require(
                1e-12 <= eps < 1,
                f"eps={eps} must be from 1e-12 (float64 has no finer grain here) to under"
                " 1, where the constant 0 would do.",
            )
        require(
            len(self.eps) >= 2 and list(self.eps) == sorted(set(self.eps), reverse=True),
            f"eps={self.eps} must be two or more, descending.",
        )
        at_least(self, 1, "iterates")
        at_most(self, 8, "iterates")


@dataclass(frozen=True)
class NormedOptions(Options):
    """PolyNorm networks of fixed width: of functions in Sobolev spaces, and of other networks.

    Attributes:
        orders: n, derivatives of the targets that the networks use.
        dims: d, 1 or 2.
        targets: what is approximated, each of norm 1 in W^{n,inf}.
        degrees_1d: N for d = 1, ascending: coefficients on each axis.
        degrees_2d: N for d = 2.
        errors: asked for of imitations, descending.
    """

    orders: tuple[int, ...] = (1, 2, 3, 4)
    dims: tuple[int, ...] = (1, 2)
    targets: tuple[str, ...] = ("spline", "waves", "runge", "bumps", "random")
    degrees_1d: tuple[int, ...] = (4, 16, 64)
    degrees_2d: tuple[int, ...] = (4, 8, 16)
    errors: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

    def __post_init__(self) -> None:
        check_fields(self)
        distinct(self, "orders", "dims", "targets", "errors")
        at_least(self, 1, "orders", "dims", "degrees_1d", "degrees_2d")
        at_most(self, MAX_ORDER, "orders")
        at_most(self, 2, "dims")
        at_most(self, 1024, "degrees_1d")
        at_most(self, 64, "degrees_2d")
        for name in self.targets:
            if name not in TARGETS:
                raise unknown("target", name, TARGETS)
        for degrees in (self.degrees_1d, self.degrees_2d):
            require(
                len(degrees) >= 2 and list(degrees) == sorted(set(degrees)),
                f"degrees={degrees} must be two or more, ascending: a slope is wanted.",
            )
        for error in self.errors:
            require(
                1e-6 <= error < 1,
                f"error={error} must be from 1e-6 (float64 has no finer grain there) to under 1.",
            )

    def degrees(self, d: int) -> tuple[int, ...]:
        """N for dimension d."""
        return {1: self.degrees_1d, 2: self.degrees_2d}[d]


@dataclass(frozen=True)
class DepthOptions(Options):
    """Networks of equal size and different depth: does depth pay?

    Attributes:
        sizes: numbers that a network may have, ascending.
        orders: n, derivatives of the targets that the networks use.
        dims: d, 1 or 2.
        targets: what is approximated, each of norm 1 in W^{n,inf}.
        rounds: rounds in which the cells of a network are computed, ascending, from 1 on, up to as
            many as it has cells.
        squares: numbers that a ReLU network for x^2 may have, ascending.
    """

    sizes: tuple[int, ...] = (500, 2000, 8000)
    orders: tuple[int, ...] = (2,)
    dims: tuple[int, ...] = (1, 2)
    targets: tuple[str, ...] = ("spline", "waves")
    rounds: tuple[int, ...] = (1, 4, 16)
    squares: tuple[int, ...] = (50, 100, 200)

    def __post_init__(self) -> None:
        check_fields(self)
        distinct(self, "sizes", "orders", "dims", "targets", "rounds", "squares")
        at_least(self, 1, "orders", "dims", "rounds")
        at_least(self, 50, "sizes", "squares")
        at_most(self, MAX_ORDER, "orders")
        at_most(self, 2, "dims")
        at_most(self, 20_000, "sizes", "squares")
        at_most(self, 256, "rounds")
        for name in self.targets:
            if name not in TARGETS:
                raise unknown("target", name, TARGETS)
        for counts in (self.sizes, self.rounds, self.squares):
            require(list(counts) == sorted(counts), f"{counts} must be ascending.")
        require(self.rounds[0] == 1, f"rounds={self.rounds} must begin with 1, all at once.")


QUICK_RATES = RatesOptions(
    orders=(1, 2, 3), dims=(1,), cells_1d=(8, 16, 32), spread=("waves",), uneven=(7, 13, 29)
)
QUICK_NORMED = NormedOptions(
    orders=(2,), targets=("spline",), degrees_1d=(4, 16), degrees_2d=(4, 8), errors=(1e-1, 1e-3)
)
QUICK_DEPTH = DepthOptions(
    sizes=(500,), orders=(2,), dims=(1,), targets=("spline",), rounds=(1, 4), squares=(50,)
)
QUICK_IMITATE = ImitateOptions(eps=(1e-1, 1e-2, 1e-4), iterates=(1,))
"""Well under a minute each."""
