"""Coefficients held in bounds: what large models were given on top of PolyCom."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polycom_jax._errors import require


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
        # jnp.clip would halve the gradient of what is at the bound, where coefficients may start.
        coeffs = jnp.where(jnp.abs(coeffs) > bound, jnp.sign(coeffs) * bound, coeffs)
    return coeffs * jnp.asarray(output_scale, coeffs.dtype) if output_scale != 1.0 else coeffs


def stored_coeffs(
    effective: Sequence[float], *, sigmoid: bool = False, bound: float | None = None
) -> Float[np.ndarray, " R+1"]:
    """The float64 coefficients that `effective_coeffs` turns into `effective`, scale left out.

    a_0, and log(a_i / (1 - a_i)) in the place of the others if `sigmoid`.

    Raises:
        InputError: coefficients that no stored ones lead to: outside (0, 1) if `sigmoid`, or
            outside the bound, where they would be clipped and stay.
    """
    wanted = np.array(effective, np.float64)
    shown = tuple(effective)
    if sigmoid:
        require(
            bool(((wanted[1:] > 0) & (wanted[1:] < 1)).all()),
            f"initial coefficients {shown}: with sigmoid a_1 and the others must lie between 0 and"
            " 1, which the logistic function does not reach; give other ones as `initial`.",
        )
    require(
        bound is None or bool((np.abs(wanted) <= bound).all()),
        f"initial coefficients {shown} must be within bound={bound}: what is clipped has no"
        " gradient and would stay there; give others as `initial`, or a larger bound.",
    )
    if sigmoid:
        wanted[1:] = np.log(wanted[1:]) - np.log1p(-wanted[1:])
    return wanted
