"""AdamW with warm-up and cosine; what decays and how fast it learns follow a parameter's role."""

from dataclasses import dataclass
from typing import get_args

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from polycom_jax import params as pm
from polycom_jax._errors import require, unknown
from polycom_jax._fields import check_fields
from polycom_jax.params import Role, Specs


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        peak_learning_rate: reached at the end of the warm-up.
        final_learning_rate_fraction: the schedule ends at this share of the peak.
        warmup_steps: updates over which the rate rises linearly.
        decay_steps: the update at which the rate reaches its end, warm-up included; None: the
            run's last one.
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of that mean.
        weight_decay: decoupled: each update also subtracts learning rate x this x the parameter.
        decay_roles: roles of the parameters that decay. Not PolyCom coefficients, as in both
            official code bases, nor norms, as in the dense one.
        clip_norm: gradients of a greater global norm are scaled to it; None: never.
        accumulation_steps: the batch is processed in this many parts; the result is the same.
        coefficient_multiplier: learning rate of PolyCom coefficients, relative to the others'.
    """

    peak_learning_rate: float = 3e-4
    final_learning_rate_fraction: float = 0.1
    warmup_steps: int = 0
    decay_steps: int | None = None
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_roles: tuple[Role, ...] = ("matrix", "embedding", "router")
    clip_norm: float | None = 1.0
    accumulation_steps: int = 1
    coefficient_multiplier: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        infinity = float("inf")
        for name in ("peak_learning_rate", "eps"):
            value = getattr(self, name)
            require(0 < value < infinity, f"{name}={value} must be positive and finite.")
        for name in ("weight_decay", "coefficient_multiplier"):
            value = getattr(self, name)
            require(0 <= value < infinity, f"{name}={value} must be at least 0 and finite.")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name}={value} must be at least 0 and below 1.")
        fraction = self.final_learning_rate_fraction
        require(
            0 <= fraction <= 1,
            f"final_learning_rate_fraction={fraction} must lie between 0 and 1: "
            "it is a share of peak_learning_rate.",
        )
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be at least 0.")
        require(
            self.decay_steps is None or self.decay_steps > self.warmup_steps,
            f"decay_steps={self.decay_steps} must be greater than warmup_steps="
            f"{self.warmup_steps}, which it includes; or none, for the run's length.",
        )
        require(
            self.clip_norm is None or 0 < self.clip_norm < infinity,
            f"clip_norm={self.clip_norm} must be positive and finite; or none, for no clipping.",
        )
        require(
            self.accumulation_steps >= 1,
            f"accumulation_steps={self.accumulation_steps} must be at least 1.",
        )
        for role in self.decay_roles:
            if role not in get_args(Role):
                raise unknown("parameter role in decay_roles", role, get_args(Role))


def make_schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate of each update of a run of `steps` updates.

    With t = count + 1 the number of the update (so the first one already moves), w the warm-up and
    h the horizon (`decay_steps`, or `steps`), the rate in units of the peak is t / w up to t = w,
    f + (1 - f) (1 + cos(pi (t - w) / (h - w))) / 2 up to t = h, and f from there on. A run shorter
    than its warm-up never leaves it.

    Args:
        optim: gives peak, f, w and h.
        steps: length of the run.

    Returns:
        A function from the number of updates done (int32) to the rate (float32).

    Raises:
        InputError: `steps` is below 1.
    """
    require(steps >= 1, f"steps={steps} must be at least 1.")
    warmup, final = optim.warmup_steps, optim.final_learning_rate_fraction
    horizon = steps if optim.decay_steps is None else optim.decay_steps

    def schedule(count: ArrayLike) -> Float[Array, ""]:
        update = jnp.asarray(count, jnp.int32) + 1
        rise = update.astype(jnp.float32) / max(warmup, 1)
        progress = (update - warmup).astype(jnp.float32) / max(horizon - warmup, 1)
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        share = jnp.where(update <= warmup, rise, final + (1.0 - final) * fall)
        return optim.peak_learning_rate * share

    return schedule


def make_optimizer(optim: OptimConfig, specs: Specs, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) behind a clip of the global norm.

    Args:
        optim: the numbers.
        specs: the model's parameters; their roles say what decays and what learns at another rate.
        steps: length of the run, which the schedule may need.

    Returns:
        The transformation. Moments have the parameters' shapes and float32.
    """
    parts = [
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=jnp.float32),
        optax.add_decayed_weights(optim.weight_decay, pm.mask(specs, set(optim.decay_roles))),
        optax.masked(optax.scale(optim.coefficient_multiplier), pm.mask(specs, {"coefficient"})),
        optax.scale_by_learning_rate(make_schedule(optim, steps)),
    ]
    if optim.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(optim.clip_norm))
    return optax.chain(*parts)
