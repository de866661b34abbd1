"""PolyReLU and PolyPReLU with all gradients of coefficients in one pass, for XLA's CPU backend.

dx = g p'(z) z'(x), da_i = sum g z^i: the transpose of the tangent in `xla.py`, with z = rho(x).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.activations.polynomial import horner
from polycom_jax.activations.trainable import prelu
from polycom_jax.kernels.poly_relu import xla
from polycom_jax.kernels.recompute import recomputed
from polycom_jax.kernels.row_sums import cotangent_terms, row_sums

Totals = Callable[[Sequence[Array]], list[Array]]
"""The sums of all elements of each array."""


def _slope(z: Array, coeffs: Array) -> Array:
    return horner(z, [i * coeffs[i] for i in range(1, coeffs.size)])


def _row_totals(terms: Sequence[Array]) -> list[Array]:
    return [jnp.sum(rows) for rows in row_sums([jnp.atleast_1d(t) for t in terms])]


def with_sums(totals: Totals) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """(poly_relu, poly_prelu), whose gradients' sums `totals` takes."""

    def relu_gradient(primals: Any, g: Array) -> tuple[Array, Array]:
        x, coeffs = primals
        z = jax.nn.relu(x)
        dx = jnp.where(x > 0, g * _slope(z, coeffs), 0)
        return dx, jnp.stack(totals(cotangent_terms(z, g, coeffs.size - 1)))

    def prelu_gradient(primals: Any, g: Array) -> tuple[Array, Array, Array]:
        x, coeffs, slope = primals
        z = prelu(x, slope)
        dz = g * _slope(z, coeffs)
        terms = cotangent_terms(z, g, coeffs.size - 1)
        *dcoeffs, dslope = totals([*terms, jnp.where(x > 0, 0, dz * x)])
        return jnp.where(x > 0, dz, slope * dz), jnp.stack(dcoeffs), dslope

    return (
        recomputed(xla.relu_value, xla.relu_tangent, relu_gradient),
        recomputed(xla.prelu_value, xla.prelu_tangent, prelu_gradient),
    )


poly_relu, poly_prelu = with_sums(_row_totals)
