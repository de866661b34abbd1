"""PolyNorm and its two relatives in few passes over memory, for XLA's CPU backend.

Forward: the row sums of x^2, x^4 ... in one pass, from which the numbers of each row follow that
the backward pass keeps; the polynomial in a second. Backward: the row sums of g, g x, g x^2 ... in
one pass, the input's gradient in another:

    dx = g sum_i i a_i s_i x^(i-1) - sum_i i a_i s_i^3 mean(g x^i) x^(2i-1)

with s_i the gain of power i (the transpose of the tangent in `xla.py`). A row of large numbers has
to be scaled before its powers are formed. Whether there is one shows in the sums, so no pass is
spent on a maximum: where there is, the sums are formed again, of scaled rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import horner
from polycom_jax.kernels.poly_norm import moments, xla
from polycom_jax.kernels.poly_norm.row_stats import RowStats, row_stats
from polycom_jax.kernels.recompute import recomputed
from polycom_jax.kernels.row_sums import row_sums


def _cotangent_moments(x: Float[Array, "*S F"], g: Float[Array, "*S F"], order: int) -> RowStats:
    """Row sums of g, g x, g x^2 ... g x^order."""
    return row_sums(moments.cotangent_terms(x, g, order))


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
        return [
            jnp.sum(t, axis=-1, keepdims=True) for t in moments.cotangent_terms(x * scale, g, order)
        ]

    change = jax.jvp(plain, (x, g), (dx, dg))[1]
    return _scaled_cotangent_moments(order, x, g, scale), change


def row(primals: xla.Pair, *, eps: float) -> RowStats:
    """The scale of each row, and the gain of each power."""
    x, coeffs = primals
    return _row(x.astype(work_dtype(x.dtype)), coeffs.size - 1, eps)


def _row(x: Float[Array, "*S F"], order: int, eps: float) -> RowStats:
    def sums(x: Array) -> RowStats:
        return row_sums(moments.moment_terms(x, order))

    return row_stats(x, order, eps, first=sums, again=sums)


def _relu_row(primals: xla.Pair, *, eps: float) -> RowStats:
    x, coeffs = primals
    return row((jax.nn.relu(x), coeffs), eps=eps)


def _glu_row(primals: Any, *, eps: float) -> RowStats:
    gate, _, coeffs = primals
    return row((gate, coeffs), eps=eps)


def _value(x: Array, coeffs: Array, *, eps: float, residuals: xla.Residuals = None) -> Array:
    return xla.value(x, coeffs, eps=eps, residuals=residuals or row((x, coeffs), eps=eps))


def _relu_value(x: Array, coeffs: Array, *, eps: float, residuals: xla.Residuals = None) -> Array:
    return _value(jax.nn.relu(x), coeffs, eps=eps, residuals=residuals)


def _glu_value(
    gate: Array, up: Array, coeffs: Array, *, eps: float, residuals: xla.Residuals = None
) -> Array:
    return _value(gate, coeffs, eps=eps, residuals=residuals) * up


def _gradient(
    primals: xla.Pair, g: Array, *, eps: float, residuals: RowStats
) -> tuple[Array, Array]:
    del eps
    x, coeffs = primals
    (scale, *inv_rms), width = residuals, x.shape[-1]
    bias, *cotangent_moments = _scaled_cotangent_moments(coeffs.size - 1, x, g, scale)
    z = x * scale
    direct_coeffs, norm_grad_coeffs = [], []
    for i, (a, s, cotangent_moment) in enumerate(
        zip(coeffs[1:], inv_rms, cotangent_moments, strict=True), start=1
    ):
        direct_coeffs.append(i * a * s)
        # gain * mean(g z^i) is bounded by g; gain^3 alone is not, where eps is small.
        norm_grad_coeffs.append(i * a * s * (s * (s * (cotangent_moment / width))))
    dx = (horner(z, direct_coeffs) * g - horner(z * z, norm_grad_coeffs) * z) * scale
    of_powers = [
        s * cotangent_moment for s, cotangent_moment in zip(inv_rms, cotangent_moments, strict=True)
    ]
    return dx, jnp.stack([jnp.sum(total) for total in (bias, *of_powers)])


def _relu_gradient(
    primals: xla.Pair, g: Array, *, eps: float, residuals: RowStats
) -> tuple[Array, Array]:
    x, coeffs = primals
    dx, dcoeffs = _gradient((jax.nn.relu(x), coeffs), g, eps=eps, residuals=residuals)
    return jnp.where(x > 0, dx, 0), dcoeffs


def _glu_gradient(
    primals: Any, g: Array, *, eps: float, residuals: RowStats
) -> tuple[Array, Array, Array]:
    gate, up, coeffs = primals
    dgate, dcoeffs = _gradient((gate, coeffs), g * up, eps=eps, residuals=residuals)
    return dgate, g * xla.value(gate, coeffs, eps=eps, residuals=residuals), dcoeffs


poly_norm = recomputed(_value, xla.tangent, _gradient, row)
poly_relu_norm = recomputed(_relu_value, xla.relu_tangent, _relu_gradient, _relu_row)
poly_norm_glu = recomputed(_glu_value, xla.glu_tangent, _glu_gradient, _glu_row)
