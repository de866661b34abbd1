"""Rotary position embedding (Su et al. 2021), in the form that each backend runs well."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax._errors import require
from polycom_jax._fields import check_fields, check_range
from polycom_jax.kernels.implementations import backend
from polycom_jax.kernels.linear import linear_map

SinCos = tuple[Float[Array, "B T 1 A"], Float[Array, "B T 1 A"]]
"""Sines and cosines of the angles, float32, as `rope` of the same backend takes them."""


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies for a longer context than training began with: the rule of Llama 3.1.

    A frequency f has 2 pi / f tokens to a turn. With s = `original_context_length` f / (2 pi), the
    turns within that context, and t = (s - low) / (high - low) clipped to [0, 1], it becomes
    t f + (1 - t) f / `factor`: fast turns stay, slow ones are slowed down.

    Attributes:
        factor: divisor of the slow frequencies, at least 1; 1: all stay.
        low_freq_factor: turns, below which a frequency is divided.
        high_freq_factor: turns, above which it stays; more than `low_freq_factor`.
        original_context_length: tokens that the model was first trained on at once.

    Raises:
        InputError: a value out of range, or one that a factor of 1 leaves without effect.
    """

    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192

    def __post_init__(self) -> None:
        check_fields(self, _PREFIX)
        names = ("factor", "low_freq_factor", "high_freq_factor")
        check_range(self, "positive and finite", *names, prefix=_PREFIX)
        check_range(self, "at least 1", "factor", "original_context_length", prefix=_PREFIX)
        low, high = self.low_freq_factor, self.high_freq_factor
        require(
            low < high,
            f"{_PREFIX}low_freq_factor={low} must be less than {_PREFIX}high_freq_factor={high}.",
        )
        for name in ("low_freq_factor", "high_freq_factor", "original_context_length"):
            value = getattr(self, name)
            require(
                self.factor != 1 or value == getattr(type(self), name),
                f"{_PREFIX}{name}={value} with {_PREFIX}factor=1, which leaves all frequencies as"
                " they are; give the factor, too.",
            )

    def rescaled(self, frequency: Float[Array, " A"]) -> Float[Array, " A"]:
        """The frequencies by the rule above, radians a token."""
        turns = frequency * (self.original_context_length / (2 * math.pi))
        span = self.high_freq_factor - self.low_freq_factor
        stays = jnp.clip((turns - self.low_freq_factor) / span, 0, 1)
        return frequency * (stays + (1 - stays) / self.factor)


_PREFIX = "rope_scaling."
UNSCALED = RopeScaling()


def sin_cos(
    positions: Int[Array, "B T"], width: int, theta: float, scaling: RopeScaling = UNSCALED
) -> SinCos:
    """Of angles position * theta^(-2c/C), C = `width` and c below C/2; frequencies by `scaling`.

    For all layers together, since XLA does not move them out of the loop over layers
    (experiments/results/speed/README.md, "Rotary embedding on TPUs").
    """
    half = width // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling.factor != 1:
        frequency = scaling.rescaled(frequency)
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
