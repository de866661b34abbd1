"""Plain definitions of PolyCom's relatives: the paper's ablation forms, and gated PolyNorm.

The exact formulas of the paper's PolyPReLU and PolyReLUNorm were not found; these are the natural
readings of their names (arXiv 2411.03884, section 4.3).
"""

import jax
from jaxtyping import Array, ArrayLike, Float

from polycom_jax.activations.inputs import (
    EPS,
    check_coeffs,
    check_floating,
    check_gate,
    check_row,
    check_slope,
    in_work_dtype,
)
from polycom_jax.activations.polynomial import horner, norm_polynomial
from polycom_jax.activations.trainable import prelu

INITIAL_SLOPE = 0.25
"""Where a learned slope starts, as in PReLU (He et al., arXiv 1502.01852)."""


def poly_prelu(
    x: Float[ArrayLike, "*S"], coeffs: Float[ArrayLike, " R+1"], slope: Float[ArrayLike, ""]
) -> Float[Array, "*S"]:
    """PolyPReLU: sum_i coeffs[i] * prelu(x)^i, prelu(x) = x if x > 0 else slope * x.

    Args:
        x: any shape and floating dtype.
        coeffs: a_0 ... a_r, ascending.
        slope: a learned scalar; 0 gives `poly_relu`.

    Returns:
        The shape and dtype of `x`.

    Raises:
        InputError: no floating array, coefficients that are no vector of two or more, or a slope
            that is no scalar.
    """
    x, coeffs, slope = check_floating("x", x), check_coeffs(coeffs), check_slope(slope)
    return in_work_dtype(lambda x, c, slope: horner(prelu(x, slope), c), x, coeffs, slope)


def poly_relu_norm(
    x: Float[ArrayLike, "*S F"], coeffs: Float[ArrayLike, " R+1"], *, eps: float = EPS
) -> Float[Array, "*S F"]:
    """PolyReLUNorm: coeffs[0] + sum_{i>=1} coeffs[i] * norm(relu(x)^i), i.e. poly_norm(relu(x)).

    norm(u) = u / sqrt(mean(u^2) + eps) over the last axis. Arguments, result and errors are those
    of `poly_norm`.
    """
    x, coeffs = check_row("x", x, eps), check_coeffs(coeffs)
    return in_work_dtype(lambda x, c: norm_polynomial(jax.nn.relu(x), c, eps), x, coeffs)


def poly_norm_glu(
    gate: Float[ArrayLike, "*S F"],
    up: Float[ArrayLike, "*S F"],
    coeffs: Float[ArrayLike, " R+1"],
    *,
    eps: float = EPS,
) -> Float[Array, "*S F"]:
    """Gated PolyNorm, as the Motif models use it: poly_norm(gate) * up, rounded once.

    Args:
        gate: what PolyNorm is applied to; any shape of rank 1 or more, any floating dtype.
        up: the same shape and dtype.
        coeffs: a_0 ... a_r, ascending.
        eps: added to each mean, under the root.

    Returns:
        The shape and dtype of `gate`. It is rounded once, after the product.

    Raises:
        InputError: those of `poly_norm`, or `gate` and `up` differ in shape or dtype.
    """
    gate, coeffs = check_row("gate", gate, eps), check_coeffs(coeffs)
    up = check_gate(gate, up)
    return in_work_dtype(lambda g, u, c: norm_polynomial(g, c, eps) * u, gate, up, coeffs)
