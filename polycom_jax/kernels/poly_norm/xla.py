"""PolyNorm and its two relatives with a factored derivative, for XLA to fuse.

With z the scaled row, t its tangent, s_i the gain of power i and m_i = mean(i z^(2i-1) t),

    dy = A t + sum_i (da_i s_i - a_i s_i^3 m_i) z^i + da_0,    A = sum_i i a_i s_i z^(i-1):

polynomials in z whose coefficients are one number a row. Transposed, that is one reduction a power,
mean(dy z^i), and polynomials again: the closed form of Liger-Kernel PR #901.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import horner, norm_polynomial, power_inv_rms, scale_row
from polycom_jax.activations.rectifier import step
from polycom_jax.kernels.recompute import recomputed

Pair = tuple[Array, Array]
Residuals = Sequence[Array] | None
"""What `row` gave, which the backward pass keeps; None: it has to be computed."""


def _derivative(
    x: Float[Array, "*S F"],
    coeffs: Float[Array, " R+1"],
    dx: Float[Array, "*S F"],
    dcoeffs: Float[Array, " R+1"],
    residuals: Sequence[Float[Array, "*S 1"]],
) -> Float[Array, "*S F"]:
    """The derivative of PolyNorm at (x, coeffs) along (dx, dcoeffs)."""
    scale, *inv_rms = residuals
    z, t = x * scale, dx * scale
    # Horner's scheme throughout, and g = z^(2i-1) t grown from step to step: with powers of z
    # instead, a TPU v4 runs a feed-forward block 3 % longer (by its compiler's own count).
    square, g = z * z, z * t
    slopes, rows = [], [dcoeffs[0]]
    for i, s in enumerate(inv_rms, start=1):
        slopes.append(i * coeffs[i] * s)
        mean = i * jnp.mean(g, axis=-1, keepdims=True)
        # s * mean is bounded by the tangent; s^3 alone is not, where eps is small.
        rows.append(dcoeffs[i] * s - coeffs[i] * s * (s * (s * mean)))
        g = g * square
    return horner(z, slopes) * t + horner(z, rows)


def row(primals: Pair, *, eps: float) -> list[Array]:
    """The scale of each row, and the gain of each power."""
    x, coeffs = primals
    z, scale = scale_row(x.astype(work_dtype(x.dtype)))
    return [scale, *power_inv_rms(z, scale, coeffs.size - 1, eps)]


def tangent(primals: Pair, tangents: Pair, *, eps: float, residuals: Residuals = None) -> Array:
    """The change of `poly_norm` along (dx, dcoeffs)."""
    return _derivative(*primals, *tangents, residuals or row(primals, eps=eps))


def _relu_row(primals: Pair, *, eps: float) -> list[Array]:
    x, coeffs = primals
    return row((jax.nn.relu(x), coeffs), eps=eps)


def value(x: Array, coeffs: Array, *, eps: float, residuals: Residuals = None) -> Array:
    """PolyNorm, of the row numbers that are known."""
    if residuals is None:
        return norm_polynomial(x, coeffs, eps)
    scale, *inv_rms = residuals
    bias, *others = coeffs
    return horner(x * scale, [bias, *(a * s for a, s in zip(others, inv_rms, strict=True))])


def relu_value(x: Array, coeffs: Array, *, eps: float, residuals: Residuals = None) -> Array:
    """PolyReLUNorm, likewise."""
    return value(jax.nn.relu(x), coeffs, eps=eps, residuals=residuals)


def relu_tangent(
    primals: Pair, tangents: Pair, *, eps: float, residuals: Residuals = None
) -> Array:
    """The change of `poly_relu_norm` along (dx, dcoeffs)."""
    (x, coeffs), (dx, dcoeffs) = primals, tangents
    dx = step(x) * dx
    residuals = residuals or _relu_row(primals, eps=eps)
    return _derivative(jax.nn.relu(x), coeffs, dx, dcoeffs, residuals)


def glu_value(
    gate: Array, up: Array, coeffs: Array, *, eps: float, residuals: Residuals = None
) -> Array:
    """Gated PolyNorm, likewise."""
    return value(gate, coeffs, eps=eps, residuals=residuals) * up


def _glu_row(primals: Any, *, eps: float) -> list[Array]:
    gate, _, coeffs = primals
    return row((gate, coeffs), eps=eps)


def glu_tangent(primals: Any, tangents: Any, *, eps: float, residuals: Residuals = None) -> Array:
    """The change of `poly_norm_glu` along (dgate, dup, dcoeffs)."""
    (gate, up, coeffs), (dgate, dup, dcoeffs) = primals, tangents
    residuals = residuals or _glu_row(primals, eps=eps)
    change = _derivative(gate, coeffs, dgate, dcoeffs, residuals)
    return change * up + value(gate, coeffs, eps=eps, residuals=residuals) * dup


poly_norm = recomputed(value, tangent, row=row)
poly_relu_norm = recomputed(relu_value, relu_tangent, row=_relu_row)
poly_norm_glu = recomputed(glu_value, glu_tangent, row=_glu_row)
