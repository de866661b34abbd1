"""PolyNorm and its two relatives with a factored derivative, for XLA to fuse.

With z the scaled row, t its tangent, s_i the inverse RMS of power i and m_i = mean(i z^(2i-1) t),

    dy = A t + sum_i (da_i s_i - a_i s_i^3 m_i) z^i + da_0,    A = sum_i i a_i s_i z^(i-1):

polynomials in z whose coefficients are one number a row. Transposed, that is one reduction a power,
mean(dy z^i), and polynomials again: the closed form of Liger-Kernel PR #901.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import horner, norm_polynomial, power_inv_rms, scale_row
from polycom_jax.kernels.poly_norm import moments
from polycom_jax.kernels.poly_norm.relatives import with_relatives

Pair = tuple[Array, Array]
Residuals = Sequence[Array] | None
"""Each row's scale and inverse RMS, as saved for the backward pass; None: not computed yet."""


def row(primals: Pair, *, eps: float, relu: bool = False) -> list[Array]:
    """The scale of each row, and the inverse RMS of each power."""
    x, coeffs = primals
    x = jax.nn.relu(x) if relu else x
    z, scale = scale_row(x.astype(work_dtype(x.dtype)))
    return [scale, *power_inv_rms(z, scale, coeffs.size - 1, eps)]


def value(x: Array, coeffs: Array, *, eps: float, residuals: Residuals = None) -> Array:
    """PolyNorm; from the residuals, where there are any."""
    if residuals is None:
        return norm_polynomial(x, coeffs, eps)
    scale, *inv_rms = residuals
    return horner(x * scale, moments.value_terms(inv_rms, list(coeffs)))


def tangent(primals: Pair, tangents: Pair, *, eps: float, residuals: Residuals = None) -> Array:
    """The change of `poly_norm` along (dx, dcoeffs)."""
    (x, coeffs), (dx, dcoeffs) = primals, tangents
    scale, *inv_rms = residuals or row(primals, eps=eps)
    z, t = x * scale, dx * scale
    # g = z^(2i-1) t grows from step to step: powers of z take a TPU longer
    # (experiments/results/speed/README.md, "The derivative by Horner's scheme").
    square, g = z * z, z * t
    slopes, terms = [], [dcoeffs[0]]
    for i, s in enumerate(inv_rms, start=1):
        slopes.append(i * coeffs[i] * s)
        mean = i * jnp.mean(g, axis=-1, keepdims=True)
        # s * mean is bounded by the tangent; s^3 alone is not, where eps is small.
        terms.append(dcoeffs[i] * s - coeffs[i] * s * (s * (s * mean)))
        g = g * square
    return horner(z, slopes) * t + horner(z, terms)


poly_norm, poly_relu_norm, poly_norm_glu = with_relatives(value, tangent, row=row)
