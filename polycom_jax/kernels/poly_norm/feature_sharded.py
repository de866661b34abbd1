"""PolyNorm and its relatives where a mesh axis splits the rows, in plain XLA operations.

For use inside `jax.shard_map`: each shard sums its part, a few numbers a row are gathered, and the
polynomial is applied to the part. Derivatives are those of `xla.py`, its means taken over all
shards.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import horner, scale_row
from polycom_jax.activations.rectifier import step
from polycom_jax.kernels.poly_norm import moments
from polycom_jax.kernels.recompute import recomputed


def _row(
    x: Float[Array, "*S F"], order: int, eps: float, axis_name: moments.AxisName
) -> tuple[Float[Array, "*S F"], Float[Array, "*S 1"], list[Array]]:
    """(z, scale, gains) of whole rows, for this shard's part of them."""
    z, scale = scale_row(x)
    sums = [jnp.sum(m, axis=-1, keepdims=True) for m in moments.moment_terms(z, order)]
    _, whole = moments.over_shards(moments.Sums(scale, sums), axis_name)
    inv_rms = moments.inv_rms(whole, moments.full_width(x.shape[-1], axis_name), eps)
    return x * whole.scale, whole.scale, inv_rms


def _value(x: Array, coeffs: Array, *, eps: float, axis_name: moments.AxisName) -> Array:
    z, _, inv_rms = _row(x, coeffs.size - 1, eps, axis_name)
    return horner(z, moments.value_terms(inv_rms, list(coeffs)))


def _derivative(
    x: Array, coeffs: Array, dx: Array, dcoeffs: Array, eps: float, axis_name: moments.AxisName
) -> Array:
    z, scale, inv_rms = _row(x, coeffs.size - 1, eps, axis_name)
    t = dx * scale
    parts = [
        jnp.sum(i * z ** (2 * i - 1) * t, axis=-1, keepdims=True) for i, _ in enumerate(inv_rms, 1)
    ]
    cotangent_moments = jax.lax.psum(jnp.concatenate(parts, axis=-1), axis_name)
    cotangent_moments = cotangent_moments / moments.full_width(x.shape[-1], axis_name)
    slopes, change = [], jnp.broadcast_to(dcoeffs[0], z.shape)
    for i, s in enumerate(inv_rms, 1):
        slopes.append(i * coeffs[i] * s)
        norm_grad_coeffs = coeffs[i] * s * (s * (s * cotangent_moments[..., i - 1 : i]))
        change += (dcoeffs[i] * s - norm_grad_coeffs) * z**i
    return horner(z, slopes) * t + change


def _tangent(primals: Any, tangents: Any, **static: Any) -> Array:
    return _derivative(*primals, *tangents, **static)


def _relu_value(x: Array, coeffs: Array, **static: Any) -> Array:
    return _value(jax.nn.relu(x), coeffs, **static)


def _relu_tangent(primals: Any, tangents: Any, **static: Any) -> Array:
    (x, coeffs), (dx, dcoeffs) = primals, tangents
    return _derivative(jax.nn.relu(x), coeffs, step(x) * dx, dcoeffs, **static)


def _glu_value(gate: Array, up: Array, coeffs: Array, **static: Any) -> Array:
    return _value(gate, coeffs, **static) * up


def _glu_tangent(primals: Any, tangents: Any, **static: Any) -> Array:
    (gate, up, coeffs), (dgate, dup, dcoeffs) = primals, tangents
    change = _derivative(gate, coeffs, dgate, dcoeffs, **static)
    return change * up + _value(gate, coeffs, **static) * dup


poly_norm = recomputed(_value, _tangent)
poly_relu_norm = recomputed(_relu_value, _relu_tangent)
poly_norm_glu = recomputed(_glu_value, _glu_tangent)
