"""PolyReLU and PolyPReLU with a factored derivative, for XLA to fuse.

With z = rho(x): dy = p'(z) dz + sum_i da_i z^i. Both are Horner's scheme, so the transpose forms
da_i = sum (dy z) z ... from the left, and where dy = 0 no power meets an infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.activations.learnable import prelu
from polycom_jax.activations.polynomial import horner
from polycom_jax.kernels.recompute import recomputed


def _derivative(z: Array, coeffs: Array, dz: Array, dcoeffs: Array) -> Array:
    slopes = [i * coeffs[i] for i in range(1, coeffs.size)]
    return horner(z, slopes) * dz + horner(z, dcoeffs)


def _relu_value(x: Array, coeffs: Array) -> Array:
    return horner(jax.nn.relu(x), coeffs)


def _relu_tangent(primals: Any, tangents: Any) -> Array:
    (x, coeffs), (dx, dcoeffs) = primals, tangents
    return _derivative(jax.nn.relu(x), coeffs, jnp.where(x > 0, dx, 0), dcoeffs)


def _prelu_value(x: Array, coeffs: Array, slope: Array) -> Array:
    return horner(prelu(x, slope), coeffs)


def _prelu_tangent(primals: Any, tangents: Any) -> Array:
    (x, coeffs, slope), (dx, dcoeffs, dslope) = primals, tangents
    dz = jnp.where(x > 0, dx, slope * dx + x * dslope)
    return _derivative(prelu(x, slope), coeffs, dz, dcoeffs)


poly_relu = recomputed(_relu_value, _relu_tangent)
poly_prelu = recomputed(_prelu_value, _prelu_tangent)
