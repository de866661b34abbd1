"""Other bases of the polynomials: matrices from their coefficients to those of powers."""

from math import comb
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from polycom_jax._errors import unknown

Basis = Literal["chebyshev", "hermite", "bernstein"]
"""Chebyshev's polynomials of the first kind, Hermite's as probabilists have them (leading
coefficient 1), and Bernstein's of the same degree on [0, 1]."""


def to_powers(basis: Basis, order: int) -> Float[np.ndarray, "R+1 R+1"]:
    """The matrix whose column k has the k-th polynomial's coefficients, ascending.

    Args:
        basis: which polynomials.
        order: degree r of the last one; of all, for Bernstein's.

    Raises:
        InputError: an unknown basis.
    """
    if basis not in get_args(Basis):
        raise unknown("basis of polynomials", basis, get_args(Basis))
    if basis == "bernstein":
        powers = range(order + 1)
        return np.array([[_bernstein(order, i, k) for k in powers] for i in powers])
    columns = [np.eye(order + 1)[0], np.eye(order + 1)[1]]
    for k in range(1, order):
        times_x = np.roll(columns[k], 1)
        columns.append(
            2 * times_x - columns[k - 1] if basis == "chebyshev" else times_x - k * columns[k - 1]
        )
    return np.stack(columns, axis=1)


def _bernstein(order: int, i: int, k: int) -> float:
    """The coefficient of x^i in C(r, k) x^k (1 - x)^(r - k)."""
    return (-1) ** (i - k) * comb(order, i) * comb(i, k) if i >= k else 0


def from_powers(basis: Basis, coeffs: Float[np.ndarray, " R+1"]) -> Float[np.ndarray, " R+1"]:
    """The coefficients in the basis of the polynomial that has these, ascending, of powers."""
    return np.linalg.solve(to_powers(basis, len(coeffs) - 1).astype(np.float64), coeffs)
