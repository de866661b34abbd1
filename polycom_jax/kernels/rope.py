"""Rotary position embedding (Su et al. 2021), in the form that each backend runs well."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.dispatch import backend
from polycom_jax.kernels.linear import linear_map


def rope(
    x: Float[Array, "B T H C"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T H C"]:
    """Turns the pair (c, c + C/2) by position * theta^(-2c/C).

    The halves convention of Llama's published weights, not the interleaved one. float32 inside.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if backend() != "tpu":
        a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return by_product(x, sin, cos)


def by_product(
    x: Float[Array, "B T H C"], sin: Float[Array, "B T 1 C/2"], cos: Float[Array, "B T 1 C/2"]
) -> Float[Array, "B T H C"]:
    """`rope` with the halves exchanged by a matrix product.

    A TPU keeps C in its lanes, and XLA makes half-filled arrays of the two halves: for q and k of
    24 layers of 16,384 tokens (16 heads of 128) that takes 48 ms on v5p, forward and backward; one
    product with a permutation, which is exact, and one fusion take 16 (predicted, libtpu 0.0.50.1).
    """
    factors = jnp.concatenate([-sin, sin], axis=-1), jnp.concatenate([cos, cos], axis=-1)
    return linear_map(_turn, _turn_back, factors, (x,))


def _turn(factors: Sequence[Array], moved: Sequence[Array]) -> Array:
    (sin, cos), (x,) = factors, moved
    swap = jnp.roll(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape[-1] // 2, axis=0)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    other = jnp.dot(x, swap, precision=exact, preferred_element_type=jnp.float32)
    return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)


def _turn_back(factors: Sequence[Array], cotangent: Array) -> Sequence[Array]:
    sin, cos = factors
    return [_turn((-sin, cos), (cotangent,))]
