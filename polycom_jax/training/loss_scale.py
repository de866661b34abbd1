"""Dynamic loss scaling: gradients that float16 would round to zero are computed larger.

The loss is multiplied by a power of two before it is differentiated, and the gradient divided by it
in float32, so neither changes a digit of a number in float16's range. The scale falls when the
gradient of a finite loss overflows, whose update is left out, and rises after many that did not
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.2). Flax's `DynamicScale` does the same for
one call of `jax.grad`; here an update's gradient is the sum of those of micro-batches, and the
scale may change between updates alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from polycom_jax._errors import require
from polycom_jax.training.loss_stats import LossStats

LossScaling = Literal["none", "dynamic"]
Tree = TypeVar("Tree")

FIRST, LEAST, MOST = 2.0**16, 1.0, 2.0**32
"""The scale at the start, and between what it stays."""
GROWTH_INTERVAL = 2000
"""The scale doubles after so many updates in a row, as in Flax and PyTorch."""


@flax.struct.dataclass
class ScaledLossStats(LossStats):
    """`LossStats` of a run whose loss is scaled.

    Attributes:
        loss_scale: what the loss is multiplied by, a power of two.
        since_change: updates made since the scale changed last.
    """

    loss_scale: Float[Array, ""]
    since_change: Int[Array, ""]

    @classmethod
    def start(cls) -> Self:
        """Before the first step."""
        return cls(
            **vars(LossStats.start()),
            loss_scale=jnp.float32(FIRST),
            since_change=jnp.zeros((), jnp.int32),
        )

    def scaled(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """What is differentiated in place of a loss."""
        return loss * self.loss_scale

    def unscaled(self, grads: Any) -> Any:
        """The loss's gradient, from that of `scaled`; float32."""
        return jax.tree.map(lambda g: g.astype(jnp.float32) / self.loss_scale, grads)

    def after(self, loss: Float[Array, ""], good: Bool[Array, ""]) -> tuple[Self, Bool[Array, ""]]:
        """As `LossStats.after`, with the scale of the next step."""
        stats, spike = super().after(loss, good)
        # The loss itself is not scaled: where it is no number, as without targets, it is not the
        # scale that was too large.
        overflow = ~good & jnp.isfinite(loss)
        count = self.since_change + good.astype(jnp.int32)
        grows = good & (count >= GROWTH_INTERVAL)
        factor = jnp.where(overflow, 0.5, jnp.where(grows, 2.0, 1.0))
        scale = jnp.clip(self.loss_scale * factor, LEAST, MOST)
        count = jnp.where(overflow | grows, 0, count)
        return replace(stats, loss_scale=scale, since_change=count), spike

    def metrics(self) -> dict[str, Array]:
        """What a step reports of it."""
        return {"loss_scale": self.loss_scale}


LOSS_STATS: Mapping[LossScaling, type[LossStats]] = {"none": LossStats, "dynamic": ScaledLossStats}
"""What a run remembers of its losses, by how it scales them."""


def check_loss_scaling(dtype: str, scaling: LossScaling) -> None:
    """Raises `InputError` where a model computes in float16 and its loss is not scaled."""
    require(
        dtype != "float16" or scaling != "none",
        "model.dtype=float16 with optim.loss_scaling=none: gradients under 6e-8 would be zero; take"
        " optim.loss_scaling=dynamic, or model.dtype=bfloat16, which has float32's range.",
    )


def at_largest_scale(norms: Callable[[float], Tree], dtype: str) -> Tree:
    """Norms of gradients outside of a run, at the largest scale up to `FIRST` that a model bears.

    Args:
        norms: scale -> arrays, of the gradient of the loss times that, divided by it.
        dtype: the model's; only float16 needs another scale than 1.

    Returns:
        The arrays, finite unless none are even without a scale.
    """
    scale = FIRST if dtype == "float16" else LEAST
    while True:
        found = norms(scale)
        if scale == LEAST or all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
            return found
        scale /= 2
