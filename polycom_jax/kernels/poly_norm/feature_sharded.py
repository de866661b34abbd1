"""PolyNorm and its relatives where a mesh axis splits the feature axis, in plain XLA operations.

For use inside `jax.shard_map`: each shard sums its part of a row, the sums are gathered, and the
polynomial is applied to the part. Derivatives are those of `xla.py`, with means over all shards.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import horner, scale_row
from polycom_jax.kernels.poly_norm import moments
from polycom_jax.kernels.poly_norm.relatives import with_relatives
from polycom_jax.sharding import MeshAxes


def _row(
    x: Float[Array, "*S F"], order: int, eps: float, axis_name: MeshAxes
) -> tuple[Float[Array, "*S F"], Float[Array, "*S 1"], list[Array]]:
    """(z, scale, inverse RMS) of whole rows, for this shard's part of them."""
    z, scale = scale_row(x)
    sums = [jnp.sum(m, axis=-1, keepdims=True) for m in moments.moment_terms(z, order)]
    _, whole = moments.over_shards(moments.Sums(scale, sums), axis_name)
    inv_rms = moments.inv_rms(whole, moments.full_width(x.shape[-1], axis_name), eps)
    return x * whole.scale, whole.scale, inv_rms


def row(
    x: Float[Array, "*S F"], *, order: int, eps: float, axis_name: MeshAxes
) -> list[Float[Array, "*S 1"]]:
    """The scale of whole rows, and the inverse RMS of each power; also without an axis."""
    _, scale, inv_rms = _row(x, order, eps, axis_name)
    return [scale, *inv_rms]


def _value(x: Array, coeffs: Array, *, eps: float, axis_name: MeshAxes) -> Array:
    z, _, inv_rms = _row(x, coeffs.size - 1, eps, axis_name)
    return horner(z, moments.value_terms(inv_rms, list(coeffs)))


def tangent(
    primals: Any,
    tangents: Any,
    *,
    eps: float,
    axis_name: MeshAxes,
    residuals: Sequence[Array] | None = None,
) -> Array:
    """The change of `poly_norm` along (dx, dcoeffs); from the residuals, where there are any."""
    (x, coeffs), (dx, dcoeffs) = primals, tangents
    found: dict[str, Any] = {"order": coeffs.size - 1, "eps": eps, "axis_name": axis_name}
    scale, *inv_rms = residuals or row(x, **found)
    z, t = x * scale, dx * scale
    parts = [
        jnp.sum(i * z ** (2 * i - 1) * t, axis=-1, keepdims=True) for i, _ in enumerate(inv_rms, 1)
    ]
    means = jax.lax.psum(jnp.concatenate(parts, axis=-1), axis_name)
    means = means / moments.full_width(x.shape[-1], axis_name)
    slopes, change = [], jnp.broadcast_to(dcoeffs[0], z.shape)
    for i, s in enumerate(inv_rms, 1):
        slopes.append(i * coeffs[i] * s)
        through_norm = coeffs[i] * s * (s * (s * means[..., i - 1 : i]))
        change += (dcoeffs[i] * s - through_norm) * z**i
    return horner(z, slopes) * t + change


poly_norm, poly_relu_norm, poly_norm_glu = with_relatives(_value, tangent)
