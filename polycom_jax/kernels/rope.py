"""Rotary position embedding (Su et al. 2021), in the form that each backend runs well."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.implementations import backend
from polycom_jax.kernels.linear import linear_map

SinCos = tuple[Float[Array, "B T 1 A"], Float[Array, "B T 1 A"]]
"""Sines and cosines of the angles, float32, as `rope` of the same backend takes them."""


def sin_cos(positions: Int[Array, "B T"], width: int, theta: float) -> SinCos:
    """Of angles position * theta^(-2c/C), C = `width` and c below C/2.

    For all layers together, since XLA does not move them out of the loop over layers
    (experiments/results/speed/README.md, "Rotary embedding on TPUs").
    """
    half = width // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if backend() != "tpu":
        return sin, cos
    return jnp.concatenate([-sin, sin], axis=-1), jnp.concatenate([cos, cos], axis=-1)


def rope(x: Float[Array, "B T H C"], sin_cos: SinCos) -> Float[Array, "B T H C"]:
    """Rotates the pair (c, c + C/2) by position * theta^(-2c/C).

    The halves convention of Llama's published weights, not the interleaved one. float32 inside. On
    a TPU a product with a permutation, which is exact, exchanges the halves: sliced, they would
    fill half of each register (experiments/results/speed/README.md, "Rotary embedding on TPUs").
    """
    if backend() == "tpu":
        return linear_map(_rotate, _rotate_back, sin_cos, (x,))
    sin, cos = sin_cos
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _rotate(factors: Sequence[Array], operands: Sequence[Array]) -> Array:
    (sin, cos), (x,) = factors, operands
    swap = jnp.roll(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape[-1] // 2, axis=0)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    other = jnp.dot(x, swap, precision=exact, preferred_element_type=jnp.float32)
    return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)


def _rotate_back(factors: Sequence[Array], cotangent: Array) -> Sequence[Array]:
    sin, cos = factors
    return [_rotate((-sin, cos), (cotangent,))]
