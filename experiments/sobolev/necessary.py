"""What is built beside what is necessary, in one variable: how many numbers an error takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.sobolev.figures import Line, Panel
from polycom_jax import approximation as pa
from polycom_jax.approximation.bounds import least

Row = dict[str, Any]

ERRORS = tuple(10.0**-k for k in range(1, 11))
ORDER = 2
"""Of the PolyReLU units of Theorem 3's networks."""


def _spline_cells(n: int, eps: float) -> int:
    return least(lambda cells: pa.spline_bound(n, cells) <= eps)


def _depth(n: int) -> int:
    return pa.taylor_network(lambda x: 0 * x[:, 0], n, 1, 1).depth


COUNTS: Mapping[str, Callable[[int, float], int]] = {
    "PolyReLU (Theorem 3)": lambda n, eps: pa.size_formula(n, 1, pa.cells_for(eps, n, 1)),
    "spline, all numbers": lambda n, eps: 4 * (_spline_cells(n, eps) + n - 2),
    "spline, those that depend on f": lambda n, eps: _spline_cells(n, eps) + n - 1,
    "necessary, continuous in f": pa.fewest_parameters,
    "necessary at Theorem 3's depth": lambda n, eps: pa.fewest_weights(n, eps, _depth(n), ORDER),
}


def necessary(orders: Sequence[int]) -> list[Row]:
    """One row an order (2 to 4) and error: numbers that networks have, and that they must have."""
    return [
        {"n": n, "eps": eps} | {name: count(n, eps) for name, count in COUNTS.items()}
        for n in orders
        if 2 <= n <= 4
        for eps in ERRORS
    ]


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Numbers against the error, a panel an order."""
    found = []
    for n in dict.fromkeys(row["n"] for row in rows):
        own = [row for row in rows if row["n"] == n]
        x = [1 / row["eps"] for row in own]
        lines = [Line(name, x, [float(row[name]) for row in own]) for name in COUNTS]
        found.append(Panel(f"n = {n}, d = 1", lines, "1 / eps", "numbers"))
    return found


def gaps(rows: Sequence[Row]) -> str:
    """How far apart they are at the smallest error, in words."""
    last = [row for row in rows if row["eps"] == min(ERRORS)]
    built, shallow, free, must, any_ = COUNTS

    def span(over: str, under: str) -> str:
        shares = np.array([row[over] / row[under] for row in last])
        return f"{shares.min():.3g} to {shares.max():.3g}"

    return (
        f"At eps = {min(ERRORS):g}, over the orders, a choice that is continuous in f takes at"
        f" least P numbers. Of the spline {span(free, must)} P depend on f, and all are"
        f" {span(shallow, must)} P; Theorem 3's networks have {span(built, must)} P. A choice that"
        f" is not continuous is only known to take P / {span(must, any_)}."
    )
