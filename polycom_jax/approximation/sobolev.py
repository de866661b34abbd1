"""Norms and errors in W^{k,p}([0,1]^d), by quadrature and automatic differentiation.

A function here takes points [P, d] to values [P], row by row, or is a `Network` of one output. Wrap
one that has parameters in `jax.tree_util.Partial(f, parameters)`: functions that differ in numbers
alone then share a compiled program, as networks do.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from polycom_jax._errors import InputError, require
from polycom_jax._fields import check_range
from polycom_jax.approximation.bounds import multi_indices
from polycom_jax.approximation.evaluation import evaluate
from polycom_jax.approximation.network import Network
from polycom_jax.approximation.targets import Target

Function = Callable[[Float[Array, "P d"]], Float[Array, " P"]]
"""Points to values, row by row, in operations that JAX differentiates in forward mode."""

MultiIndex = tuple[int, ...]

FRACTIONS = (1 / 3, 1 / 2, 2 / 3)
"""Where, in a cell of a trapezoid partition, Taylor polynomials are worst (paper's Theorem 3)."""

INSET = 2.0**-20
"""How far from the ends of a third its outermost points lie, in thirds: beside the kinks of a
trapezoid partition and never on them, where a derivative has no value."""

CHUNK = 2**14
"""Points that are evaluated at once."""


@dataclass(frozen=True)
class Grid:
    """Points in [0,1]^d for integrals and suprema, cell by cell.

    Each edge of a cell is cut at 1/3 and 2/3, where trapezoid partitions have their kinks. In each
    third stand Gauss-Legendre nodes, which carry the quadrature, and a point `INSET` from either
    end, for suprema of derivatives that jump. Suprema of values also see `FRACTIONS` themselves.
    The nodes m / cells are left out: there an interpolant is right by construction, and sawtooth
    functions of a dyadic grid vanish.

    Attributes:
        dim: d >= 1.
        cells: on each axis; those of the network that is measured, or a multiple of them.
        gauss: nodes in each third, odd, so that the cell's middle is one; polynomials up to degree
            2 gauss - 1 are integrated exactly.

    Raises:
        InputError: a number out of its range.
    """

    dim: int
    cells: int
    gauss: int = 3

    def __post_init__(self) -> None:
        check_range(self, "at least 1", "dim", "cells")
        require(
            self.gauss >= 1 and self.gauss % 2 == 1,
            f"gauss={self.gauss} must be odd, or the middle of a cell is missed;"
            f" nearest: {max(self.gauss + 1, 1)}.",
        )

    @property
    def size(self) -> int:
        """Number of `points`."""
        return (3 * (self.gauss + 2) * self.cells) ** self.dim

    @cached_property
    def points(self) -> Float[np.ndarray, "P d"]:
        """Where functions and their derivatives are evaluated, float64."""
        return _product(self._axis[0], self.dim, np.arange(self.size))

    @cached_property
    def weights(self) -> Float[np.ndarray, " P"]:
        """Quadrature weights of `points`, none negative, with sum 1."""
        return np.prod(_product(self._axis[1], self.dim, np.arange(self.size)), axis=1)

    @cached_property
    def fractions(self) -> Float[np.ndarray, "Q d"]:
        """The points whose coordinates are all `FRACTIONS` of a cell; for values only."""
        axis = self._each_cell(np.array(FRACTIONS))
        return _product(axis, self.dim, np.arange(len(axis) ** self.dim))

    def chunks(self) -> Iterator[tuple[Float[np.ndarray, "C d"], Float[np.ndarray, " C"]]]:
        """`points` and `weights` a part at a time, without ever making all of them.

        All parts have one shape; the last one is filled up with points that weigh nothing.
        """
        return _parts(*self._axis, self.dim, min(CHUNK, self.size))

    def fraction_chunks(self) -> Iterator[Float[np.ndarray, "C d"]]:
        """`fractions` in parts of the shape of `chunks`, so that one program serves both."""
        axis = self._each_cell(np.array(FRACTIONS))
        parts = _parts(axis, np.zeros(len(axis)), self.dim, min(CHUNK, self.size))
        return (points for points, _ in parts)

    @cached_property
    def _axis(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = np.polynomial.legendre.leggauss(self.gauss)
        third = np.concatenate([[INSET], (nodes + 1) / 2, [1 - INSET]])
        shares = np.concatenate([[0.0], weights / 2, [0.0]])
        cell = (np.arange(3)[:, None] + third) / 3
        return self._each_cell(cell.ravel()), np.tile(shares / (3 * self.cells), 3 * self.cells)

    def _each_cell(self, fractions: np.ndarray) -> np.ndarray:
        return ((np.arange(self.cells)[:, None] + fractions) / self.cells).ravel()


def _product(axis: np.ndarray, dim: int, rows: np.ndarray) -> np.ndarray:
    """Some rows of the product of an axis with itself, in lexicographic order."""
    return np.stack([axis[i] for i in np.unravel_index(rows, (len(axis),) * dim)], axis=-1)


def _parts(
    axis: np.ndarray, shares: np.ndarray, dim: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    total = len(axis) ** dim
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        inside = np.minimum(rows, total - 1)
        weights = np.prod(_product(shares, dim, inside), axis=1)
        yield _product(axis, dim, inside), np.where(rows < total, weights, 0)


def derivative(f: Function, index: Sequence[int]) -> Function:
    """D^m f for the multi-index m, by nested forward-mode differentiation.

    It is the classical derivative where there is one; at a kink, JAX's convention.
    """
    for axis, times in enumerate(index):
        for _ in range(times):
            f = partial(_along, f, axis)
    return f


def _along(f: Function, axis: int, x: Float[Array, "P d"]) -> Float[Array, " P"]:
    direction = jnp.zeros_like(x).at[:, axis].set(1)
    return jax.jvp(f, (x,), (direction,))[1]


@partial(jax.jit, static_argnames="indices")
def derivatives_at(
    f: Function, x: Float[Array, "P d"], indices: tuple[MultiIndex, ...]
) -> Float[Array, "M P"]:
    """D^m f at each point, for each multi-index m; `f` is a `Partial`."""
    return jnp.stack([derivative(f, index)(x) for index in indices])


def derivative_norms(
    f: Function | Network,
    grid: Grid,
    *,
    order: int,
    p: float = math.inf,
    smoothness: float | None = None,
) -> dict[MultiIndex, float]:
    """The L^p norm of D^m f for each |m| <= order, computed in float64.

    Args:
        f: points [P, d] to values [P], row by row, differentiable by JAX in forward mode; or a
            network of one output.
        grid: its cells should resolve f.
        order: k >= 0 of W^{k,p}.
        p: from 1 to infinity; the supremum is the largest value on the grid, so never too large.
        smoothness: the largest k for which f is in W^{k,inf}: 1 for ReLU and trapezoid networks, s
            for piecewise polynomials in C^{s-1}, `math.inf` for smooth functions. It is declared,
            for it cannot be seen from values; a `Network` or a `Target` brings its own, which no
            declaration exceeds, and needs none.

    Raises:
        InputError: order beyond the smoothness: automatic differentiation would return the
            derivative of the pieces, without what happens between them (0 for a ReLU network, whose
            second derivative is no function at all). Also for numbers out of their range, or a
            function that returns something else than one value a point, or is neither network nor
            target and has no declared smoothness.
    """
    _check(order, p, _smoothness((f,), smoothness))
    indices = tuple(multi_indices(grid.dim, order))
    f = _callable(f)
    with jax.enable_x64(True):
        _check_values(f, grid.dim)
        largest, sums = np.zeros(len(indices)), np.zeros(len(indices))
        for points, weights in grid.chunks():
            sizes = np.abs(np.asarray(derivatives_at(f, jnp.asarray(points), indices)))
            if not math.isinf(p):
                sizes, weights = sizes[:, weights > 0], weights[weights > 0]
            before, largest = largest, np.maximum(largest, sizes.max(axis=1, initial=0))
            if not math.isinf(p):
                # Of quotients by the largest: powers of the numbers themselves overflow, or are 0.
                scale = _scale(largest)
                with np.errstate(over="ignore", invalid="ignore"):  # the norm is not finite either
                    sums = sums * (before / scale) ** p + (sizes / scale[:, None]) ** p @ weights
        if math.isinf(p):
            # Derivatives are dropped here, where there may be none: one program serves all points.
            for points in grid.fraction_chunks():
                values = np.abs(np.asarray(derivatives_at(f, jnp.asarray(points), indices)[0]))
                largest[0] = np.maximum(largest[0], values.max())
    norms = largest if math.isinf(p) else _scale(largest) * sums ** (1 / p)
    return dict(zip(indices, map(float, norms), strict=True))


def sobolev_norm(
    f: Function | Network,
    grid: Grid,
    *,
    order: int,
    p: float = math.inf,
    smoothness: float | None = None,
) -> float:
    """||f|| in W^{k,p}: max over |m| <= k of sup |D^m f| for p = inf, as in the paper's Theorem 3.

    For finite p it is (sum over |m| <= k of integral |D^m f|^p)^(1/p). Arguments and errors are
    those of `derivative_norms`.

        >>> import math
        >>> wave = lambda x: jnp.sin(2 * jnp.pi * x[:, 0])
        >>> norm = sobolev_norm(wave, Grid(dim=1, cells=8), order=1, p=2, smoothness=math.inf)
        >>> round(norm, 6) == round(math.sqrt((1 + (2 * math.pi) ** 2) / 2), 6)
        True
    """
    norms = np.array(
        list(derivative_norms(f, grid, order=order, p=p, smoothness=smoothness).values())
    )
    if math.isinf(p):
        return float(norms.max())
    scale = _scale(norms.max())
    return float(scale * np.sum((norms / scale) ** p) ** (1 / p))


def sobolev_error(
    f: Function | Network,
    g: Function | Network,
    grid: Grid,
    *,
    order: int,
    p: float = math.inf,
    smoothness: float | None = None,
) -> float:
    """||f - g|| in W^{k,p}; `smoothness` is that of the rougher one of the two.

    The other arguments and the errors are those of `derivative_norms`.
    """
    known = _smoothness((f, g), smoothness)
    return sobolev_norm(difference(f, g), grid, order=order, p=p, smoothness=known)


def difference(f: Function | Network, g: Function | Network) -> Function:
    """x -> f(x) - g(x), still a `Partial` of both functions' parameters."""
    return Partial(_difference, _callable(f), _callable(g))


def _scale(largest: Float[np.ndarray, "*M"]) -> Float[np.ndarray, "*M"]:
    """What numbers up to this are divided by before powers are taken."""
    return np.where((largest > 0) & np.isfinite(largest), largest, 1.0)


def _callable(f: Function | Network) -> Partial:
    if isinstance(f, Network):
        require(f.outputs == 1, f"the network must have one output, not {f.outputs}.")
        return Partial(_values, f)
    return f if isinstance(f, Partial) else Partial(f)


def _values(net: Network, x: Array) -> Array:
    return evaluate(net, x)[:, 0]


def _smoothness(functions: Sequence[Function | Network], declared: float | None) -> float:
    known = [f.smoothness for f in functions if isinstance(f, Network | Target)]
    require(
        declared is not None or len(known) == len(functions),
        "smoothness must be given for functions that are neither networks nor targets: the largest"
        " k for which they are in W^(k,inf).",
    )
    return min([math.inf if declared is None else declared, *known])


def _difference(f: Function, g: Function, x: Array) -> Array:
    return f(x) - g(x)


def _check(order: int, p: float, smoothness: float) -> None:
    require(order >= 0, f"order={order} must be at least 0.")
    require(p >= 1, f"p={p} must be at least 1.")
    require(
        order <= smoothness,
        f"order={order}: the function is in W^(k,inf) for k <= {smoothness} only, so"
        " its error in a higher norm is infinite or undefined; lower the order, or take a smoother"
        " network, such as one on splines.",
    )


@contextmanager
def made_of_jax_operations() -> Generator[None, None, None]:
    """Refuses, in one line, a function that turns what it is given into a NumPy array."""
    try:
        yield
    except jax.errors.TracerArrayConversionError as error:
        raise InputError(
            "The function must be made of JAX's operations, which it is differentiated by; it turns"
            " its argument into a NumPy array. Take jax.numpy in place of numpy in it."
        ) from error


def _check_values(f: Function, dim: int) -> None:
    with made_of_jax_operations():
        shape = jax.eval_shape(f, jax.ShapeDtypeStruct((2, dim), jnp.float64)).shape
    require(
        shape == (2,),
        f"The function takes points [2, {dim}] to {list(shape)}; it must give one value a point,"
        " [2].",
    )
