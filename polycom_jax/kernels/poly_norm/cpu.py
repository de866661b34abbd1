"""PolyNorm and its two relatives in few passes over memory, for XLA's CPU backend.

Forward: the row sums of x^2, x^4 ... in one pass, from which each row's scale and inverse RMS
follow, which the backward pass keeps; the polynomial in a second. Backward: the row sums of g, g x,
g x^2 ... in one pass, the input's gradient in another (formulas in `moments`). A row of large
numbers has to be scaled before its powers are formed. Whether there is one shows in the sums, so no
pass is spent on a maximum: where there is, the sums are formed again, of scaled rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import horner
from polycom_jax.kernels.poly_norm import moments, xla
from polycom_jax.kernels.poly_norm.relatives import with_relatives
from polycom_jax.kernels.poly_norm.row_stats import RowStats, row_stats
from polycom_jax.kernels.row_sums import cotangent_terms, row_sums


def _cotangent_moments(x: Float[Array, "*S F"], g: Float[Array, "*S F"], order: int) -> RowStats:
    """Row sums of g, g x, g x^2 ... g x^order."""
    return row_sums(cotangent_terms(x, g, order))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scaled_cotangent_moments(order: int, x: Array, g: Array, scale: Array) -> RowStats:
    """Of z = x * scale, from x itself where no row has to be scaled."""

    def again(x: Array, g: Array, scale: Array, *_sums: Array) -> RowStats:
        return _cotangent_moments(x * scale, g, order)

    def as_they_are(_x: Array, _g: Array, _scale: Array, *sums: Array) -> RowStats:
        return list(sums)

    sums = _cotangent_moments(x, g, order)
    return jax.lax.cond(jnp.all(scale == 1), as_they_are, again, x, g, scale, *sums)


@_scaled_cotangent_moments.defjvp
def _scaled_cotangent_moments_rule(
    order: int, primals: Any, tangents: Any
) -> tuple[RowStats, RowStats]:
    # Of scaled rows: JAX's own, of the sums that overflowed, would be 0 times infinity. The scale
    # has no derivative.
    (x, g, scale), (dx, dg, _) = primals, tangents

    def plain(x: Array, g: Array) -> RowStats:
        terms = cotangent_terms(x * scale, g, order)
        return [jnp.sum(t, axis=-1, keepdims=True) for t in terms]

    change = jax.jvp(plain, (x, g), (dx, dg))[1]
    return _scaled_cotangent_moments(order, x, g, scale), change


def row(primals: xla.Pair, *, eps: float, relu: bool = False) -> RowStats:
    """The scale of each row, and the inverse RMS of each power."""
    x, coeffs = primals
    x, order = jax.nn.relu(x) if relu else x, coeffs.size - 1

    def sums(x: Array) -> RowStats:
        return row_sums(moments.moment_terms(x, order))

    return row_stats(x.astype(work_dtype(x.dtype)), order, eps, first=sums, again=sums)


def _value(x: Array, coeffs: Array, *, eps: float, residuals: xla.Residuals = None) -> Array:
    return xla.value(x, coeffs, eps=eps, residuals=residuals or row((x, coeffs), eps=eps))


def _gradient(
    primals: xla.Pair, g: Array, *, eps: float, residuals: RowStats
) -> tuple[Array, Array]:
    del eps
    x, coeffs = primals
    scale, *inv_rms = residuals
    z, order = x * scale, coeffs.size - 1
    sums = moments.Sums(scale, (), _scaled_cotangent_moments(order, x, g, scale))
    direct, through_norm = moments.slope_terms(inv_rms, list(coeffs), sums, x.shape[-1])
    dx = (horner(z, direct) * g - horner(z * z, through_norm) * z) * scale
    dcoeffs = [jnp.sum(rows) for rows in moments.coefficient_terms(inv_rms, sums)]
    return dx, jnp.stack(dcoeffs)


poly_norm, poly_relu_norm, poly_norm_glu = with_relatives(_value, xla.tangent, _gradient, row)
