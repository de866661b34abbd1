"""How far PolyNorm networks are from what they were built for, beside their bounds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.sobolev.construction_options import NormedOptions
from polycom_jax import approximation as pa
from polycom_jax.approximation.sobolev import difference
from polycom_jax.approximation.targets import Target, get_target

Row = dict[str, Any]
Tell = Callable[[float, str], None]

START = (0.0, 1 / 3, 1 / 3, 1 / 3)
"""PolyNorm's coefficients at the start of training."""

COEFFS = {"square": (pa.SQUARE, pa.PEAK), "as at the start": (START, 1e3)}
"""Coefficients and peak. Where odd powers have to cancel, a lower peak costs fewer digits."""

IMITATED = {
    "relu(x) + y": pa.feed_forward(
        [[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [[1.0, 1.0, -1.0]]],
        [None, None],
        [[[0.0, 1.0]] * 3],
    ),
    "PolyReLU (1/3, 1/3, 1/3)": pa.feed_forward([[[1.0]], [[1.0]]], [None, None], [[START]]),
    "1 - 2 x^2, iterated twice": pa.quadratic_iterate(2),
    "linear interpolant of 8 cells": pa.linear_interpolant(lambda x: jnp.sin(3 * x[:, 0]) / 9, 8),
}
"""What is imitated, on [-1, 1]^d."""

CELLS = {1: 729, 2: 27}
"""Of the grids that imitations are measured on."""


def approximations(options: NormedOptions, tell: Tell) -> list[Row]:
    """One row a (target, n, d, N, coefficients): measured errors and the bound.

    Args:
        options: which.
        tell: takes (share done, what is being done).

    Returns:
        Rows with "sup", measured in float64 on a grid, "bound", "float32", how far the same
        network in float32 is from it, and "polynomial", the rounding: how far the network is from
        the polynomial that it stands for.
    """
    cases = [
        (name, get_target(name, order=n, dim=d), degree, coeffs)
        for d in options.dims
        for n in options.orders
        for name in options.targets
        for degree in options.degrees(d)
        for coeffs in COEFFS
    ]
    rows = []
    for index, case in enumerate(cases):
        name, target, degree, coeffs = case
        what = f"{name}, n = {target.order}, d = {target.dim}, N = {degree}, {coeffs}"
        tell(index / len(cases), what)
        rows.append(_approximation(target, degree, coeffs))
    return rows


def _approximation(target: Target, degree: int, named: str) -> Row:
    n, d = target.order, target.dim
    coeffs, peak = COEFFS[named]
    net = pa.poly_norm_network(target, n, d, degree, coeffs=coeffs, peak=peak)
    points = _points(d, degree)
    with jax.enable_x64(True):
        values = np.asarray(pa.evaluate_normed(net, points))[:, 0]
        wanted = np.asarray(target(jnp.asarray(points)))
        narrow = np.asarray(pa.evaluate_normed(net, points.astype(np.float32)))[:, 0]
    table = pa.favard_means(target, n, d, degree)
    return {
        "target": f"{target.name}:{n}",
        "n": n,
        "d": d,
        "coefficients": named,
        "N": degree,
        "width": net.width,
        "depth": net.depth,
        "size": net.size,
        "sup": float(np.abs(values - wanted).max()),
        "bound": pa.poly_norm_bound(n, d, degree, coeffs=coeffs, peak=peak),
        "rounding": float(np.abs(values - _series(table, points)).max()),
        "float32": float(np.abs(narrow - values).max()),
        "largest weight": net.largest_weight,
    }


def _points(d: int, degree: int) -> np.ndarray:
    """Several points for each extremum of a polynomial of that degree, ends included."""
    count = max(8 * degree, 400) if d == 1 else max(4 * degree, 64)
    axis = (1 - np.cos(np.pi * np.arange(count + 1) / count)) / 2
    return np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1).reshape(-1, d)


def _series(table: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The Chebyshev series at points [P, d], by NumPy's own recurrence, the last variable first."""
    values = np.polynomial.chebyshev.chebvander(2 * points[:, -1] - 1, table.shape[-1] - 1)
    inner = values @ np.moveaxis(table, -1, 0).reshape(table.shape[-1], -1)
    if points.shape[1] == 1:
        return inner[:, 0]
    each = inner.reshape(len(points), *table.shape[:-1])
    return np.array([_series(t, x[None])[0] for t, x in zip(each, points[:, :-1], strict=True)])


def imitations(options: NormedOptions, tell: Tell) -> list[Row]:
    """One row a (network, error asked for): what its PolyNorm imitation costs, and its error."""
    rows, total = [], len(IMITATED) * len(options.errors)
    for name, net in IMITATED.items():
        for error in options.errors:
            tell(len(rows) / total, f"{name} within {error:.0e}")
            made = pa.poly_norm_imitation(net, error)
            residual = difference(
                Partial(partial(_on_box, True), made), Partial(partial(_on_box, False), net)
            )
            grid = pa.Grid(net.inputs, CELLS[net.inputs])
            rows.append(
                {
                    "network": name,
                    "error": error,
                    "sup": pa.sobolev_norm(residual, grid, order=0, smoothness=1),
                    "width": made.width,
                    "depth": made.depth,
                    "largest weight": made.largest_weight,
                }
            )
    return rows


def _on_box(normed: bool, net: Any, x: Any) -> Any:
    values = pa.evaluate_normed if normed else pa.evaluate
    return values(net, 2 * x - 1)[:, 0]


def slopes(rows: Sequence[Row]) -> list[Row]:
    """One row a target and (n, d): least-squares slopes of error and bound in the depth N^d."""
    found = []
    keys = ("target", "n", "d", "coefficients")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        if len(own) < 2:
            continue
        log_depth = np.log([row["depth"] for row in own])
        found.append(
            dict(zip(keys, key, strict=True))
            | {
                f"slope of the {name} in the depth": float(
                    np.polyfit(log_depth, np.log([row[name] for row in own]), 1)[0]
                )
                for name in ("sup", "bound")
            }
            | {
                "theory": -key[1] / key[2],
                "largest error / bound": max(r["sup"] / r["bound"] for r in own),
            }
        )
    return found
