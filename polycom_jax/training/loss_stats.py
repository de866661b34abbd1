"""What a training run remembers of its losses: updates that were skipped, and spikes."""

from dataclasses import replace
from typing import Any, Self

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HORIZON = 100
"""Steps that the running mean of losses looks back on."""
SPIKE_DEVIATIONS = 7
"""A loss so many standard deviations above the mean is a spike, as OLMo 2 counts them
(Walsh et al. 2024, arXiv 2501.00656, section 3: seven, over the last 1,000 values)."""
SETTLED = 20
"""Steps before anything is called a spike."""


@flax.struct.dataclass
class LossStats:
    """Part of the train state, so that a resumed run goes on as if it had not stopped.

    Attributes:
        skipped: updates left out, since loss or gradient were not finite, or nothing to learn from.
        in_a_row: of these, the last ones without a good one since.
        seen: losses of the updates that were made.
        mean: their running mean.
        variance: their running variance about it.
    """

    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]
    seen: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    @classmethod
    def start(cls) -> Self:
        """Before the first step."""
        # An array each: the step donates them, and an array can be donated once.
        skipped, in_a_row, seen = (jnp.zeros((), jnp.int32) for _ in range(3))
        mean, variance = (jnp.zeros((), jnp.float32) for _ in range(2))
        return cls(skipped, in_a_row, seen, mean, variance)

    def after(self, loss: Float[Array, ""], good: Bool[Array, ""]) -> tuple[Self, Bool[Array, ""]]:
        """What is remembered after a step with this loss, and whether the loss was a spike.

        Args:
            loss: of the step, finite if `good`.
            good: whether the step's update was made.
        """
        # A loss of 64 bits would make others of the state's dtypes.
        gap = jnp.where(good, jnp.asarray(loss, jnp.float32), self.mean) - self.mean
        limit = SPIKE_DEVIATIONS * jnp.sqrt(self.variance)
        spike = good & (self.seen >= SETTLED) & (gap > limit)
        # A plain mean at first, one that forgets from `HORIZON` on.
        weight = 1 / jnp.minimum(self.seen + 1, HORIZON).astype(jnp.float32)
        weight = jnp.where(good, weight, 0)
        bad = (~good).astype(jnp.int32)
        stats = replace(
            self,
            skipped=self.skipped + bad,
            in_a_row=(self.in_a_row + bad) * bad,
            seen=self.seen + 1 - bad,
            mean=self.mean + weight * gap,
            variance=(1 - weight) * (self.variance + weight * jnp.square(gap)),
        )
        return stats, spike

    def scaled(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """What is differentiated in place of a loss: the loss itself."""
        return loss

    def unscaled(self, grads: Any) -> Any:
        """The loss's gradient, from that of `scaled`."""
        return grads

    def metrics(self) -> dict[str, Array]:
        """What a step reports of it."""
        return {}
