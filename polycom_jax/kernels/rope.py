"""Rotary position embedding (Su et al. 2021), in the form that each backend runs well."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.dispatch import backend
from polycom_jax.kernels.linear import linear_map

SinCos = tuple[Float[Array, "B T 1 A"], Float[Array, "B T 1 A"]]
"""Sines and cosines of the angles, float32, as `rope` of the same backend takes them."""


def sin_cos(positions: Int[Array, "B T"], width: int, theta: float) -> SinCos:
    """Of angles position * theta^(-2c/C), C = `width` and c below C/2.

    Once a model, not once a layer: XLA leaves in a layer's loop what is computed there, sines and
    cosines too. dense-1b's step on v4-32 takes 956 ms so and 962 otherwise, on v5e-16 1,323 and
    1,328 (predicted, libtpu 0.0.50.1), and compiles in 295 CPU seconds, not 452.
    """
    half = width // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if backend() != "tpu":
        return sin, cos
    return jnp.concatenate([-sin, sin], axis=-1), jnp.concatenate([cos, cos], axis=-1)


def rope(x: Float[Array, "B T H C"], sin_cos: SinCos) -> Float[Array, "B T H C"]:
    """Turns the pair (c, c + C/2) by position * theta^(-2c/C).

    The halves convention of Llama's published weights, not the interleaved one. float32 inside.

    On a TPU the halves are exchanged by a matrix product. C lies in its lanes, and XLA makes
    half-filled arrays of the two halves: for q and k of 24 layers of 16,384 tokens (16 heads of
    128) that takes 48 ms on v5p, forward and backward; one product with a permutation, which is
    exact, and one fusion take 16 (predicted, libtpu 0.0.50.1).
    """
    if backend() == "tpu":
        return linear_map(_turn, _turn_back, sin_cos, (x,))
    sin, cos = sin_cos
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _turn(factors: Sequence[Array], moved: Sequence[Array]) -> Array:
    (sin, cos), (x,) = factors, moved
    swap = jnp.roll(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape[-1] // 2, axis=0)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    other = jnp.dot(x, swap, precision=exact, preferred_element_type=jnp.float32)
    return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)


def _turn_back(factors: Sequence[Array], cotangent: Array) -> Sequence[Array]:
    sin, cos = factors
    return [_turn((-sin, cos), (cotangent,))]
