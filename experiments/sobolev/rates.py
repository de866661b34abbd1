"""How fast the constructed networks converge: errors against cells and size, slope by slope."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jax.tree_util import Partial

from experiments.sobolev.construction_options import RatesOptions
from polycom_jax import approximation as pa
from polycom_jax._errors import require
from polycom_jax.approximation.bounds import INTERIOR as KNOWN
from polycom_jax.approximation.combine import DENSE_LIMIT
from polycom_jax.approximation.sobolev import difference
from polycom_jax.approximation.targets import Target, get_target
from polycom_jax.approximation.taylor import check_memory

Row = dict[str, Any]
Tell = Callable[[float, str], None]

SHALLOW = ("interpolation", "spline")
"""Networks of one hidden layer, with a unit for each cell."""

MAX_POINTS = 400_000
"""Of a grid; where three nodes in each third would be more, one does."""


@dataclass(frozen=True)
class Case:
    """One network to build and measure.

    Attributes:
        network: which construction: poly_relu, relu, interpolation, spline, poly_relu_spline.
        n: derivatives that it uses.
        d: variables.
        cells: N.
        target: what it approximates.
    """

    network: str
    n: int
    d: int
    cells: int
    target: Target


def cases(options: RatesOptions) -> list[Case]:
    """All networks of the study, by dimension and order."""
    found = []
    for d in options.dims:
        for n in options.orders:
            target = get_target(options.target, order=n, dim=d)
            found += [
                Case(network, n, d, cells, target)
                for network in networks_for(n, d)
                for cells in options.cells(d)
            ]
    return found


def saturation_cases(options: RatesOptions) -> list[Case]:
    """d = 1: a target in W^{2,inf} and no better, by networks of more and more derivatives."""
    target = get_target("spline", order=2, dim=1)
    return [
        Case("poly_relu", n, 1, cells, target) for n in options.orders for cells in options.cells(1)
    ]


def constant_cases(options: RatesOptions) -> list[Case]:
    """d = 1: x^n / n!, whose n-th derivative is 1, so that the error is known: `interior_error`."""
    return [
        Case("poly_relu", n, 1, options.cells(1)[-1], _power(n))
        for n in options.orders
        if n in KNOWN
    ]


def _power(n: int) -> Target:
    how = "exactly: the n-th derivative is 1"
    values = partial(_power_values, n)
    return Target(f"x^{n}/{n}!", 1, n, math.inf, (1.0, 1.0), how, values)


def _power_values(n: int, x: Any) -> Any:
    return x[..., 0] ** n / math.factorial(n)


def constants(rows: Sequence[Row]) -> list[Row]:
    """One row an order: the error times N^n, and what it must be."""
    return [
        {
            "n": row["n"],
            "N": row["N"],
            "sup error x N^n": row["sup"] * row["N"] ** row["n"],
            "theory": KNOWN[row["n"]],
            "ratio": row["sup"] / pa.interior_error(row["n"], row["N"]),
        }
        for row in rows
    ]


def networks_for(n: int, d: int) -> list[str]:
    """In d = 1 one hidden layer will do, too; in d = 3 only the paper's networks fit."""
    if d == 3:
        return ["poly_relu"]
    shallow = ["interpolation" if n <= 2 else "spline"] if d == 1 else []
    return ["poly_relu", "relu", "poly_relu_spline", *shallow]


def check(options: RatesOptions, todo: Sequence[Case]) -> None:
    """Refuses what does not fit into memory, and N that are too few, before any work.

    Raises:
        InputError: from `check_memory`, or nothing is guaranteed of a ReLU network.
    """
    for case in todo:
        kind = "spline" if case.network == "poly_relu_spline" else "trapezoid"
        check_memory(case.n, case.d, case.cells, kind, options.memory)
        eps = _relu_eps(case)
        require(
            case.network != "relu" or eps < 1,
            f"cells_{case.d}d={options.cells(case.d)}: of the ReLU network for n={case.n},"
            f" N={case.cells} an error of {eps:.3g} is guaranteed, and the network 0 does as well"
            " on the unit ball; begin with a larger N.",
        )


def _relu_eps(case: Case) -> float:
    """What a ReLU network of so many cells is asked for: half is for products, if there are any."""
    return pa.bound(case.n, case.d, case.cells) * (2 if case.n * case.d > 1 else 1)


def rates(todo: Sequence[Case], tell: Tell, *, memory: int = DENSE_LIMIT) -> list[Row]:
    """One row a network: its size, depth, errors, and what is guaranteed.

    Args:
        todo: from `cases`; those of one slope follow each other.
        tell: takes (share done, what is being done).
        memory: the most bytes that the numbers of one network may take.

    Returns:
        Rows with "n", "d", "network", "target", "N", "size", "depth", "sup" (measured on a grid
        with N cells), "guarantee" (for the unit ball, where the target is in it), "largest weight",
        "w1" and "w2" with guarantees where the networks and the target have such derivatives, and
        "slope" against the row before.
    """
    rows: list[Row] = []
    weights = np.cumsum([case.cells**case.d + 200.0 for case in todo])
    for index, case in enumerate(todo):
        tell(
            float(weights[index - 1] / weights[-1]) if index else 0.0,
            f"{case.network}, n = {case.n}, d = {case.d}, N = {case.cells}",
        )
        row = measure(case, memory)
        before = rows[-1] if rows else row
        if _series(before) == _series(row) and before["N"] < row["N"]:
            row["slope"] = math.log(row["sup"] / before["sup"]) / math.log(row["N"] / before["N"])
        rows.append(row)
    return rows


def measure(case: Case, memory: int) -> Row:
    """Builds the network of a case and measures its error in all norms that it has."""
    net, guarantee, kind, cells = build(case, memory)
    values = _all_of if case.network in SHALLOW else _copies_of(cells, kind)
    f = Partial(values, net)
    smoothness = min(net.smoothness, case.target.smoothness)
    order = {"poly_relu": 1, "poly_relu_spline": 2}.get(case.network, 0) if case.d < 3 else 0
    order = int(min(order, smoothness))
    gauss = 3 if (15 * cells) ** case.d <= MAX_POINTS else 1
    grid = pa.Grid(case.d, cells, gauss)
    residual = difference(f, case.target)
    norms = pa.derivative_norms(residual, grid, order=order, smoothness=smoothness)
    upto = [max(v for m, v in norms.items() if sum(m) <= k) for k in range(order + 1)]
    row: Row = {
        "n": case.n,
        "d": case.d,
        "network": case.network,
        "target": f"{case.target.name}:{case.target.order}",
        "N": cells,
        "size": net.size,
        "depth": net.depth,
        "largest weight": net.largest_weight,
        "sup": upto[0],
    }
    in_ball = case.target.order >= case.n  # else nothing is guaranteed of it
    if in_ball:
        row["guarantee"] = guarantee
    if case.network == "poly_relu":
        row["formula"] = pa.size_formula(case.n, case.d, cells)
    for k in range(1, order + 1):
        row[f"w{k}"] = upto[k]
        if k <= case.n and in_ball:
            upon = [pa.derivative_bound(case.n, case.d, cells, j, kind) for j in range(1, k + 1)]
            row[f"w{k} guarantee"] = max(guarantee, *upon)
    return row


def build(case: Case, memory: int) -> tuple[pa.Network, float, Any, int]:
    """(network, error guaranteed on the unit ball, partition, N).

    The ReLU network is asked for the eps of which half is the bound at N, so it has N cells too.
    """
    n, d, cells = case.n, case.d, case.cells
    match case.network:
        case "poly_relu":
            net = pa.taylor_network(case.target, n, d, cells, limit=memory)
            return net, pa.bound(n, d, cells), "trapezoid", cells
        case "poly_relu_spline":
            net = pa.taylor_network(case.target, n, d, cells, kind="spline", limit=memory)
            return net, pa.bound(n, d, cells, "spline"), "spline", cells
        case "interpolation":
            net = pa.linear_interpolant(case.target, cells)
            return net, pa.interpolation_bound(n, cells), "trapezoid", cells
        case "spline":
            net = pa.spline_network(case.target, n, cells)
            return net, pa.spline_bound(n, cells), "trapezoid", cells
        case _:
            eps = _relu_eps(case)
            net = pa.relu_taylor_network(case.target, n, d, eps, limit=memory)
            return net, eps, "trapezoid", pa.cells_for(eps / (2 if n * d > 1 else 1), n, d)


def _all_of(net: pa.Network, x: Any) -> Any:
    return pa.evaluate(net, x)[:, 0]


def _copies_of(cells: int, kind: Any) -> Callable[..., Any]:
    """(net, x) -> values, by the few copies that do not vanish at x."""

    def values(net: pa.Network, x: Any) -> Any:
        return pa.evaluate_copies(net, x, pa.active_copies(x, cells))[:, 0]

    return values


def _series(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("n", "d", "network", "target"))


def series(rows: Sequence[Row]) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """(n, d, network, target) and its rows, in order."""
    for key in dict.fromkeys(map(_series, rows)):
        yield key, [row for row in rows if _series(row) == key]


def slopes(rows: Sequence[Row]) -> list[Row]:
    """One row a series and norm: least-squares slopes against N and size, and theory's.

    In W^{k,inf} the rate is n - k, for n up to the target's own smoothness; of the paper's
    networks, "share" is the slope over theory's.
    """
    found = []
    for (n, d, network, target), own in series(rows):
        smooth = min(n, int(target.split(":")[1])) if target.startswith("spline") else n
        for k, norm in enumerate(("sup", "w1", "w2")):
            points = [row for row in own if row.get(norm, 0) > 0]
            if len(points) < 2:
                continue
            against = {
                axis: fit([row[axis] for row in points], [row[norm] for row in points])
                for axis in ("N", "size")
            }
            found.append(
                {
                    "network": network,
                    "target": target,
                    "n": n,
                    "d": d,
                    "norm": norm,
                    "slope in N": against["N"],
                    "theory": float(k - smooth),
                    "slope in size": against["size"],
                    "theory in size": (k - smooth) / d,
                    "local slopes in N": ", ".join(f"{s:.2f}" for s in local(points, norm)),
                }
            )
    return found


def fit(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def local(rows: Sequence[Row], norm: str) -> list[float]:
    """Slopes from each row to the next, against N."""
    pairs = itertools.pairwise(rows)
    return [math.log(b[norm] / a[norm]) / math.log(b["N"] / a["N"]) for a, b in pairs]


def logarithm(rows: Sequence[Row]) -> list[Row]:
    """size eps^(d/n) with the guaranteed eps: flat without a logarithm, rising with one.

    One row a series: its first and last value, their ratio, and "ratio a node": the same without
    the factor ((N + 1) / N)^d, which falls to 1 where a network has a block for each node.
    """
    found = []
    for (n, d, network, target), own in series(rows):
        if network == "poly_relu_spline" or len(own) < 2:
            continue
        ends = own[0], own[-1]
        first, last = (row["size"] * row["guarantee"] ** (d / n) for row in ends)
        blocks = 0 if network in SHALLOW else d  # these have about N units
        nodes = [(1 + 1 / row["N"]) ** blocks for row in ends]
        found.append(
            {
                "network": network,
                "target": target,
                "n": n,
                "d": d,
                "at the largest eps": first,
                "at the smallest eps": last,
                "ratio": last / first,
                "ratio a node": last / first * nodes[0] / nodes[1],
            }
        )
    return found
