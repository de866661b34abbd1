"""Grouped products as XLA has them."""

import jax
from jaxtyping import Array, Float, Int


def grouped_matmul(
    x: Float[Array, "R K"], w: Float[Array, "E K M"], sizes: Int[Array, " E"]
) -> Float[Array, "R M"]:
    """`jax.lax.ragged_dot`; see `api.grouped_matmul`."""
    return jax.lax.ragged_dot(x, w, sizes)
