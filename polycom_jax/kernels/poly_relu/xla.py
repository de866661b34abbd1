"""PolyReLU and PolyPReLU with a factored derivative, for XLA to fuse.

With z = rho(x): dy = p'(z) dz + sum_i da_i z^i. Both are Horner's scheme, so the transpose forms
da_i = sum (dy z) z ... from the left, and where dy = 0 no power meets an infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.activations.polynomial import horner
from polycom_jax.activations.rectifier import step
from polycom_jax.activations.trainable import prelu
from polycom_jax.kernels.recompute import recomputed


def _derivative(z: Array, coeffs: Array, dz: Array, dcoeffs: Array) -> Array:
    slopes = [i * coeffs[i] for i in range(1, coeffs.size)]
    return horner(z, slopes) * dz + horner(z, dcoeffs)


def relu_value(x: Array, coeffs: Array) -> Array:
    """The value, elements of any shape."""
    return horner(jax.nn.relu(x), coeffs)


def relu_tangent(primals: Any, tangents: Any) -> Array:
    """Its change along (dx, dcoeffs)."""
    (x, coeffs), (dx, dcoeffs) = primals, tangents
    return _derivative(jax.nn.relu(x), coeffs, step(x) * dx, dcoeffs)


def prelu_value(x: Array, coeffs: Array, slope: Array) -> Array:
    """The value, elements of any shape."""
    return horner(prelu(x, slope), coeffs)


def prelu_tangent(primals: Any, tangents: Any) -> Array:
    """Its change along (dx, dcoeffs, dslope)."""
    (x, coeffs, slope), (dx, dcoeffs, dslope) = primals, tangents
    positive = step(x)
    dz = (positive + (1 - positive) * slope) * dx + jnp.minimum(x, 0) * dslope
    return _derivative(prelu(x, slope), coeffs, dz, dcoeffs)


poly_relu = recomputed(relu_value, relu_tangent)
poly_prelu = recomputed(prelu_value, prelu_tangent)
