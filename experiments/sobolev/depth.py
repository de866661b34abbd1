"""What depth is worth at a given size: the same function built deeper and narrower."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.sobolev.construction_options import DepthOptions
from polycom_jax import approximation as pa
from polycom_jax.activations.inputs import EPS
from polycom_jax.approximation.bounds import least
from polycom_jax.approximation.normed_network import Rows
from polycom_jax.approximation.normed_sobolev import clenshaw_network
from polycom_jax.approximation.sobolev import difference
from polycom_jax.approximation.targets import Target, get_target

Row = dict[str, Any]
Tell = Callable[[float, str], None]

OFFSET = 8.0
"""Above the partial sums of all constructions on the unit ball, with the readout's bias: those of
bumps times Taylor polynomials are at most exp(2 d / 3), and have none; those of an interpolant,
with its bias and last slope, at most 2."""

KINDS = ("poly_relu", "interpolation", "poly_norm")


@dataclass(frozen=True)
class Case:
    """One network to build and measure.

    Attributes:
        network: of `KINDS`, or `square`.
        n: derivatives that it uses.
        d: variables.
        size: numbers that it may have.
        rounds: in which its cells are computed; of a square, its levels; of poly_norm, 1.
        target: what it approximates.
    """

    network: str
    n: int
    d: int
    size: int
    rounds: int
    target: Target


def cases(options: DepthOptions) -> Iterator[Case]:
    """All networks: of each kind, order, dimension, size and target from shallow to deep."""
    for d in options.dims:
        for n in options.orders:
            for name in options.targets:
                target = get_target(name, order=n, dim=d)
                for size in options.sizes:
                    for kind in KINDS:
                        if kind != "interpolation" or (n, d) == (2, 1):
                            yield from _deeper(Case(kind, n, d, size, 1, target), options)


def _deeper(case: Case, options: DepthOptions) -> Iterator[Case]:
    """The case with each number of rounds that its cells allow."""
    if case.network == "poly_norm":
        yield case
        return
    for rounds in options.rounds:
        if copies(case, most_cells(case, rounds)) >= rounds:
            yield Case(case.network, case.n, case.d, case.size, rounds, case.target)


def copies(case: Case, cells: int) -> int:
    """Of the block that is computed in rounds."""
    return cells if case.network == "interpolation" else (cells + 1) ** case.d


def most_cells(case: Case, rounds: int) -> int:
    """N, the most cells with at most so many numbers; 0 where one cell is too many."""
    return least(lambda cells: numbers(case, cells, rounds) > case.size) - 1


def numbers(case: Case, cells: int, rounds: int) -> int:
    """The size of a network in rounds, by its formula."""
    further = rounds > 1
    if case.network == "interpolation":
        return 4 * cells + 1 + further * (4 * (rounds - 1) + 1)
    carried = 2 * (case.d + 1) * _inner_depth(case.n, case.d) * (rounds - 1) + 2
    return pa.size_formula(case.n, case.d, cells) + further * carried


@cache
def _inner_depth(n: int, d: int) -> int:
    return pa.taylor_network(lambda x: 0 * x[:, 0], n, d, 1).depth


def measured(todo: Sequence[Case], tell: Tell) -> list[Row]:
    """One row a network of functions in Sobolev spaces."""
    rows = []
    for index, case in enumerate(todo):
        doing = f"{case.network}, n = {case.n}, d = {case.d}, {case.size} numbers"
        tell(index / len(todo), f"{doing}, {case.rounds} rounds")
        rows.append(_measured(case))
    return rows


def _measured(case: Case) -> Row:
    net, f, cells, bounds = _built(case)
    grid = pa.Grid(case.d, max(cells, 8))
    residual = difference(f, case.target)
    # Both of order 1: one compiled program serves the two.
    sups = pa.derivative_norms(residual, grid, order=1, smoothness=1)
    squares = pa.derivative_norms(residual, grid, order=1, p=2, smoothness=1)
    known = {} if math.isnan(bounds[1]) else {"h1 bound": bounds[1]}
    return {
        "network": case.network,
        "n": case.n,
        "d": case.d,
        "target": f"{case.target.name}:{case.n}",
        "numbers": case.size,
        "rounds": case.rounds,
        "N": cells,
        "depth": net.depth,
        "width": net.width,
        "size": net.size,
        "sup": sups[(0,) * case.d],
        "bound": bounds[0],
        "h1": math.sqrt(sum(norm**2 for norm in squares.values())),
    } | known


def _built(case: Case) -> tuple[Any, Partial, int, tuple[float, float]]:
    """(network, it as a function, N, bounds of sup and H1 on the unit ball, NaN for none)."""
    n, d = case.n, case.d
    if case.network == "poly_norm":
        return _poly_norm(case)
    cells = most_cells(case, case.rounds)
    if case.network == "interpolation":
        net, bound = pa.linear_interpolant(case.target, cells), pa.interpolation_bound(n, cells)
        # How far f' is from the slope of its chord, where f' has the Lipschitz constant 1.
        slope = 1 / (2 * cells)
    else:
        net, bound = pa.taylor_network(case.target, n, d, cells), pa.bound(n, d, cells)
        slope = pa.derivative_bound(n, d, cells)
    deep = pa.in_rounds(net, case.rounds, offset=OFFSET)
    return deep, Partial(_first, deep), cells, (bound, math.hypot(bound, math.sqrt(d) * slope))


def _first(net: pa.Network, x: Any) -> Any:
    return pa.evaluate(net, x)[:, 0]


def _poly_norm(case: Case) -> tuple[Any, Partial, int, tuple[float, float]]:
    """Its depth is N^d: the size decides it."""

    def size(degree: int) -> int:
        full = np.ones((degree,) * case.d)  # no number is 0: as large as any
        return clenshaw_network(full, Rows(pa.SQUARE), pa.PEAK, EPS).size

    degree = least(lambda degree: size(degree) > case.size) - 1
    net = pa.poly_norm_network(case.target, case.n, case.d, degree)
    bound = pa.poly_norm_bound(case.n, case.d, degree)
    return net, Partial(_first_normed, net), degree, (bound, math.nan)


def _first_normed(net: pa.PolyNormNetwork, x: Any) -> Any:
    return pa.evaluate_normed(net, x)[:, 0]


def squares(options: DepthOptions) -> list[Row]:
    """One row a ReLU network for x^2 on [0, 1]: as many pieces a level as its numbers allow."""
    rows = []
    for size in options.squares:
        levels = 1
        while pa.folded_square(2, levels).size <= size:
            rows.append(_square(size, levels))
            levels += 1
    return rows


def _square(size: int, levels: int) -> Row:
    pieces = least(lambda p: pa.folded_square(p + 1, levels).size > size)
    net = pa.folded_square(pieces, levels)
    cells = pieces**levels
    grid = pa.Grid(1, min(cells, 4096))
    residual = difference(net, Partial(_square_of))
    norms = pa.derivative_norms(residual, grid, order=1, p=2, smoothness=1)
    most = pa.most_pieces([layer.units for layer in net.layers])
    return {
        "network": "square",
        "numbers": size,
        "levels": levels,
        "pieces a level": pieces,
        "depth": net.depth,
        "width": net.width,
        "size": net.size,
        "sup": pa.sobolev_norm(residual, grid, order=0, smoothness=1),
        "bound": 0.25 / cells**2,
        "least for these widths": pa.imitation_lower_bound(most),
        "h1": math.sqrt(sum(norm**2 for norm in norms.values())),
    }


def _square_of(x: Any) -> Any:
    return jnp.square(x[:, 0])


def prices(rows: Sequence[Row]) -> list[Row]:
    """One row a network, target and size: from all cells at once to the most rounds."""
    found = []
    keys = ("network", "n", "d", "target", "numbers")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        first, last = own[0], own[-1]
        if first is last:
            continue
        row: Row = dict(zip(keys, key, strict=True))
        for name in ("depth", "width", "N"):
            row[name] = f"{first[name]} to {last[name]}"
        for name in ("sup", "h1", "bound"):
            row[f"{name} x"] = last[name] / first[name]
        found.append(row)
    return found
