"""Polynomial compositions: THE definitions, plain, and safe for every finite input.

Coefficients ascend: `coeffs[i]` multiplies the i-th power, and `coeffs[0]` is the bias a_0 itself.
Arithmetic runs in the work dtype (float32, or float64 for float64 input) and is rounded to the
dtype of the input once, at the end.

Reference: Zhuo et al., "Polynomial Composition Activations", ICLR 2025, arXiv 2411.03884.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from polycom_jax._errors import unknown
from polycom_jax.activations.inputs import (
    EPS,
    check_coeffs,
    check_floating,
    check_order,
    check_row,
    in_work_dtype,
)


def init_coeffs(order: int = 3) -> Float[Array, " R+1"]:
    """Initial coefficients: a_0 = 0 and a_i = 1/order (arXiv 2411.03884, section 4).

    Args:
        order: degree r >= 1 of the polynomial.

    Returns:
        float32 [order + 1], ascending.

    Raises:
        InputError: `order` is not a positive integer.
    """
    check_order(order)
    return jnp.full(order + 1, 1 / order, jnp.float32).at[0].set(0)


def poly_relu(x: Float[ArrayLike, "*S"], coeffs: Float[ArrayLike, " R+1"]) -> Float[Array, "*S"]:
    """PolyReLU, with relu'(0) = 0:

        y = sum_i coeffs[i] * relu(x)^i

    Args:
        x: any shape and floating dtype.
        coeffs: a_0 ... a_r, ascending.

    Returns:
        The shape and dtype of `x`; finite wherever the true value is.

    Raises:
        InputError: an array that is not floating, or coefficients that are no vector of two or
            more.
    """
    x, coeffs = check_floating("x", x), check_coeffs(coeffs)
    return in_work_dtype(lambda z, c: horner(jax.nn.relu(z), c), x, coeffs)


def poly_norm(
    x: Float[ArrayLike, "*S F"], coeffs: Float[ArrayLike, " R+1"], *, eps: float = EPS
) -> Float[Array, "*S F"]:
    """PolyNorm:

        y = coeffs[0] + sum_{i>=1} coeffs[i] * x^i / sqrt(mean(x^(2i)) + eps)

    The mean runs over the last axis. The paper writes x^i / ||x^i||_2; its official code, and this
    function, divide by the root of the mean square instead.

    Args:
        x: any shape of rank 1 or more, any floating dtype.
        coeffs: a_0 ... a_r, ascending.
        eps: a Python number, added to each mean.

    Returns:
        The shape and dtype of `x`; finite for every finite input. Numbers under the smallest normal
        one of the work dtype (1.2e-38 in float32) may come out as 0.

    Raises:
        InputError: an array that is not floating, no last axis or an empty one, coefficients that
            are no vector of two or more, or eps outside `inputs.EPS_RANGE`.
    """
    x, coeffs = check_row("x", x, eps), check_coeffs(coeffs)
    return in_work_dtype(lambda x, c: norm_polynomial(x, c, eps), x, coeffs)


def polycom(
    x: Float[ArrayLike, "*S"],
    coeffs: Float[ArrayLike, " R+1"],
    rho: Callable[[Array], Array],
    *,
    kind: Literal["type1", "type2"] = "type1",
) -> Float[Array, "*S"]:
    """The general polynomial composition, of any order and any rho:

        type1: y = a_0 + sum_{i>=1} a_i rho(x)^i
        type2: y = a_0 + sum_{i>=1} a_i rho(x^i)

    Args:
        x: any shape and floating dtype.
        coeffs: a_0 ... a_r, ascending.
        rho: from an array of the work dtype to one of the same shape; element-wise or over rows.
        kind: whether the power is taken after rho or before it.

    Returns:
        The shape and dtype of `x`. Type 2 forms x^i as it stands, so |x|^r must be finite in the
        work dtype; `poly_norm` has no such limit.

    Raises:
        InputError: an unknown `kind`, an array that is not floating, or coefficients that are no
            vector of two or more.
    """
    if kind not in _KINDS:
        raise unknown("kind of polynomial composition", kind, _KINDS)
    x, coeffs = check_floating("x", x), check_coeffs(coeffs)
    return in_work_dtype(lambda z, c: _KINDS[kind](z, c, rho), x, coeffs)


def _type1(x: Array, coeffs: Array, rho: Callable[[Array], Array]) -> Array:
    return horner(rho(x), coeffs)


def _type2(x: Array, coeffs: Array, rho: Callable[[Array], Array]) -> Array:
    terms = (coeffs[i] * rho(x**i) for i in range(1, coeffs.size))
    return sum(terms, start=coeffs[0])


_KINDS = {"type1": _type1, "type2": _type2}


def horner(z: Float[Array, "*S"], coeffs: Array | Sequence[Array]) -> Float[Array, "*S"]:
    """coeffs[0] + z (coeffs[1] + z (coeffs[2] + ...)).

    A power that only zero coefficients multiply is never formed, so it meets no infinity. Where
    |z| >= 1 a partial sum is the next one, less a coefficient, divided by z: none overflows before
    the value does.
    """
    y = jnp.broadcast_to(coeffs[-1], z.shape)
    for c in coeffs[-2::-1]:
        y = y * z + c
    return y


def norm_polynomial(
    x: Float[Array, "*S F"], coeffs: Float[Array, " R+1"], eps: float
) -> Float[Array, "*S F"]:
    """`poly_norm` in the work dtype: a polynomial in the scaled row."""
    z, scale = scale_row(x)
    bias, *others = coeffs
    inv_rms = power_inv_rms(z, scale, len(others), eps)
    return horner(z, [bias, *(c * s for c, s in zip(others, inv_rms, strict=True))])


def scale_row(x: Float[Array, "*S F"]) -> tuple[Float[Array, "*S F"], Float[Array, "*S 1"]]:
    """(x * scale, scale) with scale = 2^-clip(floor(log2 max|x|), 0, 126); 1022 in float64.

    Powers of the scaled row stay finite, and norm(x^i) is the same if eps becomes eps * scale^(2i).
    The scale is a power of two, made from the exponent's bits, so multiplying by it is exact. It
    never enlarges a row: eps would overflow. It is never subnormal, which CPUs flush to zero, so a
    row in the topmost binade comes out under 4 and all others under 2. The result does not depend
    on it: its gradient is zero.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    info = jnp.finfo(x.dtype)
    bias, word = info.maxexp - 1, jnp.dtype(f"uint{info.bits}")
    exponent = jax.lax.bitcast_convert_type(largest, word) >> info.nmant
    exponent = jnp.clip(exponent, bias, 2 * bias - 1)
    scale = jax.lax.bitcast_convert_type((2 * bias - exponent) << info.nmant, x.dtype)
    return x * scale, scale


def power_inv_rms(
    z: Float[Array, "*S F"], scale: Float[Array, "*S 1"], order: int, eps: float
) -> list[Float[Array, "*S 1"]]:
    """1 / sqrt(mean(z^(2i)) + eps scale^(2i)) for i = 1 ... order: what z^i is multiplied by."""

    def inv_rms(i: int) -> Float[Array, "*S 1"]:
        mean = jnp.mean(z ** (2 * i), axis=-1, keepdims=True)
        return jax.lax.rsqrt(mean + eps * scale ** (2 * i))

    return [inv_rms(i) for i in range(1, order + 1)]
