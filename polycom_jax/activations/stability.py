"""Coefficients held in bounds: what large models were given on top of PolyCom."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def effective_coeffs(
    coeffs: Float[Array, " R+1"],
    *,
    sigmoid: bool = False,
    bound: float | None = None,
    output_scale: float = 1.0,
) -> Float[Array, " R+1"]:
    """The coefficients that the polynomial is evaluated with; it is linear in them.

    In this order: a_1 ... a_r go through the logistic function if `sigmoid`; all are clipped to
    [-bound, bound]; all are multiplied by `output_scale`, which scales the activation's output.

    Motif-3 (314B parameters, as ported to llama.cpp) has the logistic function, output scale 0.5
    and a bias clipped to 0.5. What is clipped has no gradient.
    """
    if sigmoid:
        coeffs = jnp.concatenate([coeffs[:1], jax.nn.sigmoid(coeffs[1:])])
    if bound is not None:
        coeffs = jnp.clip(coeffs, -bound, bound)
    return coeffs * jnp.asarray(output_scale, coeffs.dtype) if output_scale != 1.0 else coeffs
