"""PolyNorm by rows: scale and moments, their union over parts of a row, then a polynomial.

With z = x * scale the scaled row, M_i = sum z^(2i), P_i = sum dy z^i and F the width of the row,

    s_i = 1 / sqrt(M_i / F + eps scale^(2i))
    y   = a_0 + sum_i a_i s_i z^i
    dx  = scale (dy A(z) - z B(z^2)),   A = sum_i i a_i s_i z^(i-1),   B = sum_i b_i z^(2i-2)
    b_i = i a_i s_i^3 P_i / F,          da_0 = sum P_0,    da_i = sum s_i P_i.

M and P are sums, so they can be taken over tiles of a row or over its shards and added, once they
stand at one scale. Every statistic of a row is an array here that broadcasts against the others:
[rows, 1] in XLA, and registers in a kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.sharding import MeshAxes

_BIAS, _MANTISSA = 127, 23


def scale_of(largest: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """2^-clip(floor(log2 largest), 0, 126) for largest >= 0: that of `polynomial.scale_row`.

    float32; the exponent is taken from the bits, by signed integers, which Mosaic compares on every
    chip.
    """
    bits: Int[Array, "*S"] = jax.lax.bitcast_convert_type(largest, jnp.int32)
    exponent = jnp.clip(bits >> _MANTISSA, _BIAS, 2 * _BIAS - 1)
    return jax.lax.bitcast_convert_type((2 * _BIAS - exponent) << _MANTISSA, jnp.float32)


def inverse_of(scale: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """1 / scale for powers of two, from the exponent's bits: a GPU's division is not exact."""
    bits: Int[Array, "*S"] = jax.lax.bitcast_convert_type(scale, jnp.int32)
    return jax.lax.bitcast_convert_type((2 * _BIAS << _MANTISSA) - bits, jnp.float32)


def moved(moments: Sequence[Array], ratio: Array) -> list[Array]:
    """M_1 ... M_r at a scale that is `ratio` times as large, a power of two."""
    shrunk = moment_terms(ratio, len(moments))
    return [m * power for m, power in zip(moments, shrunk, strict=True)]


def powers(z: Array, last: int) -> list[Array]:
    """z, z^2, ... z^last."""
    found = [z]
    while len(found) < last:
        found.append(found[-1] * z)
    return found


def moment_terms(z: Array, order: int) -> list[Array]:
    """z^2, z^4, ... z^(2 order): what M is summed from."""
    return powers(z * z, order)


@dataclass(frozen=True)
class Sums:
    """What a row, or a part of one, adds up to.

    Attributes:
        scale: power of two that the row was multiplied by.
        moments: M_1 ... M_r.
        cotangent_moments: P_0 ... P_r, or () in the forward pass.
    """

    scale: Array
    moments: Sequence[Array]
    cotangent_moments: Sequence[Array] = ()

    @classmethod
    def unpacked(cls, row_stats: Float[Array, "*S K"], order: int, *, backward: bool) -> "Sums":
        """From an array that has them side by side, as `packed` and the kernels give it."""
        count = 2 * order + 2 if backward else order + 1
        scale, *sums = (row_stats[..., k : k + 1] for k in range(count))
        return cls(scale, sums[:order], sums[order:])

    @property
    def packed(self) -> Float[Array, "*S K"]:
        """Side by side along the last axis."""
        return jnp.concatenate([self.scale, *self.moments, *self.cotangent_moments], axis=-1)

    def at(self, scale: Array) -> "Sums":
        """The same at another scale, not above the present one.

        The ratio is a power of two, so nothing is rounded but what falls under 1e-38, where the
        largest power is 1 or more.
        """
        ratio = scale / self.scale
        return Sums(
            scale,
            [m * ratio ** (2 * i) for i, m in enumerate(self.moments, 1)],
            [p * ratio**i for i, p in enumerate(self.cotangent_moments)],
        )


def united(parts: Sums) -> Sums:
    """The sums of whole rows from those of their parts, which lie along the leading axis."""
    scale = jnp.min(parts.scale, axis=0)
    same = parts.at(jnp.broadcast_to(scale, parts.scale.shape))
    return Sums(
        scale,
        [jnp.sum(m, axis=0) for m in same.moments],
        [jnp.sum(p, axis=0) for p in same.cotangent_moments],
    )


def over_shards(own: Sums, axis_name: MeshAxes) -> tuple[Sums, Sums]:
    """(own part, whole rows) at the scale of whole rows, where the mesh axis splits rows.

    One gather of each row's sums; every shard adds them up in the same order. Without an axis the
    part is the whole.
    """
    if axis_name is None:
        return own, own
    gathered = jax.lax.all_gather(own.packed, axis_name)
    whole = united(Sums.unpacked(gathered, len(own.moments), backward=bool(own.cotangent_moments)))
    return own.at(whole.scale), whole


def full_width(part: int, axis_name: MeshAxes) -> int:
    """Width of whole rows, from that of a shard."""
    return part if axis_name is None else part * jax.lax.axis_size(axis_name)


def inv_rms(sums: Sums, width: int, eps: float) -> list[Array]:
    """s_1 ... s_r: what each power is multiplied by."""
    square, shrunk, found = sums.scale * sums.scale, None, []
    for moment in sums.moments:
        shrunk = square if shrunk is None else shrunk * square
        found.append(jax.lax.rsqrt(moment / width + eps * shrunk))
    return found


def value_terms(inv_rms: Sequence[Array], coeffs: Sequence[Array]) -> list[Array]:
    """Coefficients of y as a polynomial in z: a_0, a_1 s_1, ..."""
    return [coeffs[0], *(c * s for c, s in zip(coeffs[1:], inv_rms, strict=True))]


def slope_terms(
    inv_rms: Sequence[Array], coeffs: Sequence[Array], sums: Sums, width: int
) -> tuple[list[Array], list[Array]]:
    """Coefficients of A in z and of B in z^2.

    s_i P_i / F is bounded by the cotangent; s_i^3 alone is not, where eps is small.
    """
    slopes = [i * c * s for i, (c, s) in enumerate(zip(coeffs[1:], inv_rms, strict=True), 1)]
    through_norm = [
        a * (s * (s * (p / width)))
        for a, s, p in zip(slopes, inv_rms, sums.cotangent_moments[1:], strict=True)
    ]
    return slopes, through_norm


def coefficient_terms(inv_rms: Sequence[Array], sums: Sums) -> list[Array]:
    """What each row adds to da_0 ... da_r."""
    return [
        sums.cotangent_moments[0],
        *(s * p for s, p in zip(inv_rms, sums.cotangent_moments[1:], strict=True)),
    ]
