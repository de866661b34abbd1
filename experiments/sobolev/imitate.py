"""What it costs a ReLU network to imitate PolyReLU: size and depth against eps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.tree_util import Partial

from experiments.sobolev.construction_options import ImitateOptions
from polycom_jax import approximation as pa
from polycom_jax.approximation.sobolev import difference

Row = dict[str, Any]
Tell = Callable[[float, str], None]

ACTIVATIONS: Mapping[str, tuple[float, ...]] = {
    "relu (a_1 = 1)": (0.0, 1.0),
    "relu^2": (0.0, 0.0, 1.0),
    "relu^3": (0.0, 0.0, 0.0, 1.0),
    "PolyReLU (1/3, 1/3, 1/3)": (0.0, 1 / 3, 1 / 3, 1 / 3),
}
"""The first is the exception to Theorem 2's lower bound: it is a ReLU."""

CELLS = 3**6
"""Of the grid on [-1, 1]. No power of 2: teeth are dyadic."""

COUNTED = 2000
"""Pieces are counted where there are about as many at most."""


def imitate(options: ImitateOptions, tell: Tell) -> list[Row]:
    """One row a (PolyReLU network, eps): its ReLU imitation's size, depth, error, pieces.

    Args:
        options: which eps and how many iterates of 1 - 2 x^2.
        tell: takes (share done, what is being done).

    Returns:
        Rows with "network", "own_size", "eps", "size", "depth", "sup" (measured on [-1, 1]),
        "pieces" where they were counted, and "fewest_pieces" for those that are squares.
    """
    todo: list[tuple[str, pa.Network, Callable[[float], pa.Network]]] = [
        (
            name,
            _unit(coeffs),
            lambda eps, coeffs=coeffs: pa.imitate_activation(coeffs, eps),
        )
        for name, coeffs in ACTIVATIONS.items()
    ]
    for times in options.iterates:
        net = pa.quadratic_iterate(times)
        name = f"1 - 2 x^2, iterated {times} times"
        todo.append((name, net, lambda eps, net=net: pa.imitate(net, eps)))
    grid = pa.Grid(1, CELLS)
    rows = []
    for index, (name, net, imitated) in enumerate(todo):
        for k, eps in enumerate(options.eps):
            tell((index + k / len(options.eps)) / len(todo), f"{name}, eps = {eps:.0e}")
            rows.append(_row(name, net, imitated(eps), eps, grid))
    return rows


def _unit(coeffs: Sequence[float]) -> pa.Network:
    return pa.feed_forward([[[1.0]], [[1.0]]], [None, None], [[list(coeffs)]])


def _row(name: str, net: pa.Network, relu: pa.Network, eps: float, grid: pa.Grid) -> Row:
    residual = difference(Partial(_on_interval, relu), Partial(_on_interval, net))
    row: Row = {
        "network": name,
        "own_size": net.size,
        "eps": eps,
        "size": relu.size,
        "weights": relu.size - sum(layer.units for layer in relu.layers),
        "depth": relu.depth,
        "sup": pa.sobolev_norm(residual, grid, order=0, smoothness=1),
    }
    if name == "relu^2":  # Theorem 2's lower bound, on [0, 1]
        row["fewest_pieces"] = pa.fewest_pieces(eps)
        row["fewest_units"] = pa.fewest_units(eps)
        if row["fewest_pieces"] <= COUNTED:
            row["pieces"] = pa.count_pieces(relu, 0.0, 1.0)
    return row


def _on_interval(net: pa.Network, x: Any) -> Any:
    return pa.evaluate(net, 2 * x - 1)[:, 0]


def growth(rows: Sequence[Row]) -> list[Row]:
    """One row a network: size = a + b log2(1/eps), its b, and how straight the line is."""
    found = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        x = np.array([math.log2(1 / row["eps"]) for row in own])
        y = np.array([row["size"] for row in own], float)
        line = np.polyfit(x, y, 1)
        weights = np.polyfit(x, [row["weights"] for row in own], 1)
        spread = float(np.sum((y - y.mean()) ** 2))
        rest = float(np.sum((y - np.polyval(line, x)) ** 2))
        found.append(
            {
                "network": name,
                "own size": own[0]["own_size"],
                f"size at eps = {own[0]['eps']:.0e}": own[0]["size"],
                f"size at eps = {own[-1]['eps']:.0e}": own[-1]["size"],
                "size a bit": float(line[0]) if spread else 0.0,
                "weights a bit": float(weights[0]) if spread else 0.0,
                "R^2": 1 - rest / spread if spread else 1.0,
                "largest error / eps": max(row["sup"] / row["eps"] for row in own),
            }
        )
    return found
