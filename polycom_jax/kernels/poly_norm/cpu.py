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
from polycom_jax.kernels.poly_norm import rows, xla
from polycom_jax.kernels.poly_norm.numbers import Numbers, numbers
from polycom_jax.kernels.recompute import recomputed
from polycom_jax.kernels.row_sums import row_sums


def _pulls(x: Float[Array, "*S F"], g: Float[Array, "*S F"], order: int) -> Numbers:
    """Row sums of g, g x, g x^2 ... g x^order."""
    return row_sums(rows.pulls(x, g, order))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scaled_pulls(order: int, x: Array, g: Array, scale: Array) -> Numbers:
    """Of z = x * scale, from x itself where no row has to be scaled."""

    def again(x: Array, g: Array, scale: Array, *_sums: Array) -> Numbers:
        return _pulls(x * scale, g, order)

    def as_they_are(_x: Array, _g: Array, _scale: Array, *sums: Array) -> Numbers:
        return list(sums)

    sums = _pulls(x, g, order)
    return jax.lax.cond(jnp.all(scale == 1), as_they_are, again, x, g, scale, *sums)


@_scaled_pulls.defjvp
def _scaled_pulls_rule(order: int, primals: Any, tangents: Any) -> tuple[Numbers, Numbers]:
    # Of scaled rows: JAX's own, of the sums that overflowed, would be 0 times infinity. The scale
    # has no derivative.
    (x, g, scale), (dx, dg, _) = primals, tangents

    def plain(x: Array, g: Array) -> Numbers:
        return [jnp.sum(t, axis=-1, keepdims=True) for t in rows.pulls(x * scale, g, order)]

    change = jax.jvp(plain, (x, g), (dx, dg))[1]
    return _scaled_pulls(order, x, g, scale), change


def row(primals: xla.Pair, *, eps: float) -> Numbers:
    """The scale of each row, and the gain of each power."""
    x, coeffs = primals
    return _row(x.astype(work_dtype(x.dtype)), coeffs.size - 1, eps)


def _row(x: Float[Array, "*S F"], order: int, eps: float) -> Numbers:
    def sums(x: Array) -> Numbers:
        return row_sums(rows.moments(x, order))

    return numbers(x, order, eps, first=sums, again=sums)


def _relu_row(primals: xla.Pair, *, eps: float) -> Numbers:
    x, coeffs = primals
    return row((jax.nn.relu(x), coeffs), eps=eps)


def _glu_row(primals: Any, *, eps: float) -> Numbers:
    gate, _, coeffs = primals
    return row((gate, coeffs), eps=eps)


def _value(x: Array, coeffs: Array, *, eps: float, known: xla.Known = None) -> Array:
    return xla.value(x, coeffs, eps=eps, known=known or row((x, coeffs), eps=eps))


def _relu_value(x: Array, coeffs: Array, *, eps: float, known: xla.Known = None) -> Array:
    return _value(jax.nn.relu(x), coeffs, eps=eps, known=known)


def _glu_value(
    gate: Array, up: Array, coeffs: Array, *, eps: float, known: xla.Known = None
) -> Array:
    return _value(gate, coeffs, eps=eps, known=known) * up


def _gradient(primals: xla.Pair, g: Array, *, eps: float, known: Numbers) -> tuple[Array, Array]:
    del eps
    x, coeffs = primals
    (scale, *gains), width = known, x.shape[-1]
    bias, *pulls = _scaled_pulls(coeffs.size - 1, x, g, scale)
    z = x * scale
    straight, shrink = [], []
    for i, (a, s, pull) in enumerate(zip(coeffs[1:], gains, pulls, strict=True), start=1):
        straight.append(i * a * s)
        # gain * mean(g z^i) is bounded by g; gain^3 alone is not, where eps is small.
        shrink.append(i * a * s * (s * (s * (pull / width))))
    dx = (horner(z, straight) * g - horner(z * z, shrink) * z) * scale
    of_powers = [s * pull for s, pull in zip(gains, pulls, strict=True)]
    return dx, jnp.stack([jnp.sum(total) for total in (bias, *of_powers)])


def _relu_gradient(
    primals: xla.Pair, g: Array, *, eps: float, known: Numbers
) -> tuple[Array, Array]:
    x, coeffs = primals
    dx, dcoeffs = _gradient((jax.nn.relu(x), coeffs), g, eps=eps, known=known)
    return jnp.where(x > 0, dx, 0), dcoeffs


def _glu_gradient(
    primals: Any, g: Array, *, eps: float, known: Numbers
) -> tuple[Array, Array, Array]:
    gate, up, coeffs = primals
    dgate, dcoeffs = _gradient((gate, coeffs), g * up, eps=eps, known=known)
    return dgate, g * xla.value(gate, coeffs, eps=eps, known=known), dcoeffs


poly_norm = recomputed(_value, xla.tangent, _gradient, row)
poly_relu_norm = recomputed(_relu_value, xla.relu_tangent, _relu_gradient, _relu_row)
poly_norm_glu = recomputed(_glu_value, xla.glu_tangent, _glu_gradient, _glu_row)
