"""Grouped products as XLA has them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def grouped_matmul(
    x: Float[Array, "R K"], w: Float[Array, "E K M"], sizes: Int[Array, " E"]
) -> Float[Array, "R M"]:
    """`jax.lax.ragged_dot`; see `api.grouped_matmul`."""
    out = jax.lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.float32)
    return out.astype(x.dtype)
