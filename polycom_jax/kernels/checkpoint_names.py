"""Names for what a backward pass may keep; `ModelConfig.remat` says which of them it does."""

from collections.abc import Callable
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Kept = Literal["attention", "product", "row"]
"""What attention's backward pass reads; matrix products of parameters; PolyNorm's row scales."""


def checkpoint_as(name: Kept, x: Array) -> Array:
    """x, under a name that a policy of `jax.checkpoint` knows."""
    return checkpoint_name(x, name)


def save_only(*names: Kept) -> Callable[..., bool]:
    """The policy of `jax.checkpoint` by which these are kept and nothing else."""
    return jax.checkpoint_policies.save_only_these_names(*names)
