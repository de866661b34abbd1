"""PolyNorm and its two relatives in few passes over memory, for XLA's CPU backend.

Forward: the row sums of x^2, x^4 ... in one pass, the polynomial in a second. Backward: those sums,
the row sums of g, g x, g x^2 ... in another pass, and the input's gradient in the last one:

    dx = g sum_i i a_i s_i x^(i-1) - sum_i i a_i s_i^3 mean(g x^i) x^(2i-1)

with s_i the gain of power i (the transpose of the tangent in `xla.py`). A row of large numbers has
to be scaled before its powers are formed. Whether there is one shows in the sums, so no pass is
spent on a maximum: where there is, the sums are formed again, of scaled rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import horner, scale_row
from polycom_jax.kernels.poly_norm import xla
from polycom_jax.kernels.recompute import recomputed
from polycom_jax.kernels.row_sums import row_sums

LARGEST = 2.0**80
"""Row sums of x^(2r) up to this are taken as they are: then |x^r| <= 2^40 (|x| <= 10,321 at order
3), and no sum overflows unless the cotangent is beyond 1e26. What is larger costs two more passes,
on one core."""

Rows = list[Float[Array, "*S 1"]]


def _moments(x: Float[Array, "*S F"], order: int) -> Rows:
    """Row sums of x^2, x^4 ... x^(2 order)."""
    squares = [x * x]
    for _ in range(order - 1):
        squares.append(squares[-1] * squares[0])
    return row_sums(squares)


def _pulls(x: Float[Array, "*S F"], g: Float[Array, "*S F"], order: int) -> Rows:
    """Row sums of g, g x, g x^2 ... g x^order."""
    terms = [g]
    for _ in range(order):
        terms.append(terms[-1] * x)
    return row_sums(terms)


def _scale_and_moments(x: Float[Array, "*S F"], order: int) -> tuple[Array, Rows]:
    """The scale of each row, and the row sums of z^2, z^4 ... for z = scale * x."""

    def scaled(x: Array, *_sums: Array) -> tuple[Array, Rows]:
        z, scale = scale_row(x)
        return scale, _moments(z, order)

    def as_it_is(_x: Array, *sums: Array) -> tuple[Array, Rows]:
        return jnp.ones_like(sums[0]), list(sums)

    # Only what is small leaves the conditional: XLA's CPU backend runs what is inside on one core.
    sums = _moments(x, order)
    return jax.lax.cond(jnp.all(sums[-1] <= LARGEST), as_it_is, scaled, x, *sums)


def _gains(scale: Array, moments: Rows, width: int, eps: float) -> Rows:
    return [
        jax.lax.rsqrt(m / width + eps * scale ** (2 * i)) for i, m in enumerate(moments, start=1)
    ]


def _polynomial(z: Array, coeffs: Array, gains: Rows) -> Array:
    bias, *others = coeffs
    return horner(z, [bias, *(a * s for a, s in zip(others, gains, strict=True))])


def _value(x: Array, coeffs: Array, *, eps: float) -> Array:
    scale, moments = _scale_and_moments(x, coeffs.size - 1)
    return _polynomial(x * scale, coeffs, _gains(scale, moments, x.shape[-1], eps))


def _gradients(x: Array, coeffs: Array, g: Array, eps: float) -> tuple[Array, Array, Array]:
    """Of x and coeffs; and the value, which costs nothing where it is not used."""
    order, width = coeffs.size - 1, x.shape[-1]
    scale, moments = _scale_and_moments(x, order)

    def again(x: Array, g: Array, scale: Array, *_sums: Array) -> Rows:
        return _pulls(x * scale, g, order)

    def as_they_are(_x: Array, _g: Array, _scale: Array, *sums: Array) -> Rows:
        return list(sums)

    sums = _pulls(x, g, order)
    bias, *pulls = jax.lax.cond(jnp.all(scale == 1), as_they_are, again, x, g, scale, *sums)
    z, gains = x * scale, _gains(scale, moments, width, eps)
    straight, shrink = [], []
    for i, (a, s, pull) in enumerate(zip(coeffs[1:], gains, pulls, strict=True), start=1):
        straight.append(i * a * s)
        # gain * mean(g z^i) is bounded by g; gain^3 alone is not, where eps is small.
        shrink.append(i * a * s * (s * (s * (pull / width))))
    dx = (horner(z, straight) * g - horner(z * z, shrink) * z) * scale
    of_powers = [s * pull for s, pull in zip(gains, pulls, strict=True)]
    dcoeffs = jnp.stack([jnp.sum(rows) for rows in (bias, *of_powers)])
    return dx, dcoeffs, _polynomial(z, coeffs, gains)


def _gradient(primals: Any, g: Array, *, eps: float) -> tuple[Array, Array]:
    x, coeffs = primals
    dx, dcoeffs, _ = _gradients(x, coeffs, g, eps)
    return dx, dcoeffs


def _relu_value(x: Array, coeffs: Array, *, eps: float) -> Array:
    return _value(jax.nn.relu(x), coeffs, eps=eps)


def _relu_gradient(primals: Any, g: Array, *, eps: float) -> tuple[Array, Array]:
    x, coeffs = primals
    dx, dcoeffs, _ = _gradients(jax.nn.relu(x), coeffs, g, eps)
    return jnp.where(x > 0, dx, 0), dcoeffs


def _glu_value(gate: Array, up: Array, coeffs: Array, *, eps: float) -> Array:
    return _value(gate, coeffs, eps=eps) * up


def _glu_gradient(primals: Any, g: Array, *, eps: float) -> tuple[Array, Array, Array]:
    gate, up, coeffs = primals
    dgate, dcoeffs, value = _gradients(gate, coeffs, g * up, eps)
    return dgate, g * value, dcoeffs


poly_norm = recomputed(_value, xla.tangent, _gradient)
poly_relu_norm = recomputed(_relu_value, xla.relu_tangent, _relu_gradient)
poly_norm_glu = recomputed(_glu_value, xla.glu_tangent, _glu_gradient)
