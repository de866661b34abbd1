"""Rectifiers with derivatives that are products, not selections.

XLA's TPU backend writes the mask of a selection to memory where two places need it, which takes
longer than the product beside it (experiments/results/speed/README.md, "PolyReLU on TPUs").
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def step(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """1 where x > 0, else 0: the derivative of relu, as a number."""
    return jnp.sign(jax.nn.relu(x))


@jax.custom_jvp
def rectified(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """max(x, 0), with derivative `step`."""
    return jax.nn.relu(x)


@jax.custom_jvp
def squared_relu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """max(x, 0)^2, with derivative 2 max(x, 0)."""
    return jnp.square(jax.nn.relu(x))


rectified.defjvps(lambda t, _y, x: step(x) * t)
squared_relu.defjvps(lambda t, _y, x: 2 * rectified(x) * t)
