"""Learning rates over a run: a linear warm-up, then one of a table of shapes.

With w the updates of the warm-up and h the horizon, the progress of update t > w is
p = (t - w) / (h - w), and 1 from h on. A shape gives the rate at p in units of the peak, from 1 at
p = 0 on; f is the share of the peak that it ends at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from polycom_jax._errors import require, unknown

ScheduleName = Literal["cosine", "linear", "constant", "wsd"]
"""The names that `SHAPES` knows."""


@dataclass(frozen=True)
class Fall:
    """What a shape may depend on besides the progress.

    Attributes:
        final: f, the share of the peak that the rate ends at.
        decay: share of the updates from w to h over which "wsd" falls.
    """

    final: float
    decay: float


def cosine(progress: Float[Array, ""], fall: Fall) -> Float[Array, ""]:
    """f + (1 - f) (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    return fall.final + (1.0 - fall.final) * (0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


def linear(progress: Float[Array, ""], fall: Fall) -> Float[Array, ""]:
    """1 - (1 - f) p."""
    return 1.0 - (1.0 - fall.final) * progress


def constant(progress: Float[Array, ""], fall: Fall) -> Float[Array, ""]:
    """1: the rate never falls, and f is not used."""
    return jnp.ones_like(progress)


def wsd(progress: Float[Array, ""], fall: Fall) -> Float[Array, ""]:
    """Warm-up, stable, decay: 1 up to p = 1 - d, then f + (1 - f) (1 - p) / d, with d = `decay`.

    The linear fall of Hagele et al. (2024, arXiv 2405.18392), who find that it matches a cosine.
    """
    return fall.final + (1.0 - fall.final) * jnp.minimum((1.0 - progress) / fall.decay, 1.0)


Shape = Callable[[Float[Array, ""], Fall], Float[Array, ""]]

SHAPES: Mapping[str, Shape] = {"cosine": cosine, "linear": linear, "constant": constant, "wsd": wsd}
"""Name of a schedule -> its shape after the warm-up."""


def warmed_up(
    name: ScheduleName,
    *,
    peak: float,
    final: float,
    warmup: int,
    horizon: int,
    decay_fraction: float = 0.2,
) -> optax.Schedule:
    """The learning rate of each update: peak t / w up to t = w, then peak times the shape.

    t = count + 1 is the number of the update, so the first one already moves. A run shorter than
    its warm-up never leaves it.

    Args:
        name: of the shape.
        peak: the rate at the end of the warm-up.
        final: share of it that the rate ends at.
        warmup: w.
        horizon: h, warm-up included.
        decay_fraction: share of h over which "wsd" falls; its fall begins at the end of the warm-up
            at the earliest.

    Returns:
        A function from the number of updates done (int32) to the rate (float32).

    Raises:
        InputError: an unknown name, or numbers out of range.
    """
    if name not in SHAPES:
        raise unknown("schedule", name, get_args(ScheduleName))
    require(0 < decay_fraction <= 1, f"decay_fraction={decay_fraction} must lie in (0, 1].")
    length = max(horizon - warmup, 1)
    shape, fall = SHAPES[name], Fall(final, min(decay_fraction * horizon / length, 1.0))

    def schedule(count: ArrayLike) -> Float[Array, ""]:
        update = jnp.asarray(count, jnp.int32) + 1
        rise = update.astype(jnp.float32) / max(warmup, 1)
        progress = (update - warmup).astype(jnp.float32) / length
        share = jnp.where(update <= warmup, rise, shape(jnp.clip(progress, 0.0, 1.0), fall))
        return peak * share

    return schedule
