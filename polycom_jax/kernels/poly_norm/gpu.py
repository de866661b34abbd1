"""PolyNorm and its two relatives in few passes over memory, for XLA's GPU backend.

Forward: scale and moments of each row by one reduction; the polynomial in a second pass. Backward:
the sums that its coefficients need by one reduction, the input's gradient in a second pass. A row
is scaled within the reduction: each of its parts has the scale of its own largest element, and two
parts are moved to the smaller scale, exactly, before they are added. (A conditional that rescues
large rows, as for CPUs, costs both its branches on a GPU.)

Where `axis_name` splits rows, shards exchange these sums.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import horner
from polycom_jax.kernels.poly_norm import feature_sharded, moments, xla
from polycom_jax.kernels.poly_norm.relatives import with_relatives
from polycom_jax.kernels.poly_norm.row_stats import RowStats
from polycom_jax.kernels.row_sums import cotangent_terms, reduce_rows, sums_at_once
from polycom_jax.sharding import MeshAxes


def unsupported_reason(x: Array, *_others: Array, **_static: Any) -> str | None:
    """Why this version cannot take x, or None."""
    return "it takes no float64" if x.dtype == jnp.float64 else None


def _scaled_sums(x: Float[Array, "*S F"], order: int) -> moments.Sums:
    scale = moments.scale_of(jnp.abs(x))
    terms = (scale, *moments.moment_terms(x * scale, order))
    start = (jnp.float32(1.0), *[jnp.float32(0.0)] * order)
    scale, *sums = (r[..., None] for r in reduce_rows(terms, start, _united))
    return moments.Sums(scale, sums)


def _united(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
    scale = jnp.minimum(a[0], b[0])
    left, right = (moments.moved(part[1:], scale * moments.inverse_of(part[0])) for part in (a, b))
    return scale, *(p + q for p, q in zip(left, right, strict=True))


def row(
    primals: xla.Pair, *, eps: float, axis_name: MeshAxes = None, relu: bool = False
) -> RowStats:
    """The scale of each row, and the inverse RMS of each power."""
    x, coeffs = primals
    dtype, order = work_dtype(x.dtype), coeffs.size - 1
    width = moments.full_width(x.shape[-1], axis_name)

    @jax.custom_jvp
    def found(x: Array) -> RowStats:
        _, whole = moments.over_shards(_scaled_sums(x, order), axis_name)
        return [whole.scale, *moments.inv_rms(whole, width, eps)]

    @found.defjvp
    def rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[RowStats, RowStats]:
        # Of the definition: JAX cannot differentiate a reduction of several operands.
        plain = partial(feature_sharded.row, order=order, eps=eps, axis_name=axis_name)
        return found(*primals), jax.jvp(plain, primals, tangents)[1]

    wide = x.astype(dtype)
    return found(jax.nn.relu(wide) if relu else wide)


def _value(
    x: Array,
    coeffs: Array,
    *,
    eps: float,
    axis_name: MeshAxes = None,
    residuals: xla.Residuals = None,
) -> Array:
    found = residuals or row((x, coeffs), eps=eps, axis_name=axis_name)
    return xla.value(x, coeffs, eps=eps, residuals=found)


def _tangent(
    primals: Any, tangents: Any, *, eps: float, residuals: RowStats, axis_name: MeshAxes = None
) -> Array:
    if axis_name is None:
        return xla.tangent(primals, tangents, eps=eps, residuals=residuals)
    static: dict[str, Any] = {"eps": eps, "axis_name": axis_name, "residuals": residuals}
    return feature_sharded.tangent(primals, tangents, **static)


def _gradient(
    primals: xla.Pair,
    g: Array,
    *,
    eps: float,
    residuals: RowStats,
    axis_name: MeshAxes = None,
) -> tuple[Array, Array]:
    del eps
    x, coeffs = primals
    scale, *inv_rms = residuals
    z, order = x * scale, coeffs.size - 1
    own = [s[..., None] for s in sums_at_once((-1,), cotangent_terms(z, g, order))]
    whole = own if axis_name is None else list(jax.lax.psum(tuple(own), axis_name))
    width = moments.full_width(x.shape[-1], axis_name)
    sums = moments.Sums(scale, (), whole)
    direct, through_norm = moments.slope_terms(inv_rms, list(coeffs), sums, width)
    dx = (horner(z, direct) * g - horner(z * z, through_norm) * z) * scale
    # This shard's part of the coefficients' gradient: where they enter it, parts are added up.
    parts = moments.coefficient_terms(inv_rms, moments.Sums(scale, (), own))
    return dx, jnp.stack([jnp.sum(rows) for rows in parts])


poly_norm, poly_relu_norm, poly_norm_glu = with_relatives(_value, _tangent, _gradient, row)
