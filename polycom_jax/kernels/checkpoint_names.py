"""What the backward pass finds saved and what it computes again: names, and policies by name."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Saved = Literal["attention", "product", "row", "few_bit"]
"""What attention's backward pass reads; matrix products of parameters; PolyNorm's statistics of
each row; the value and the indices of a few-bit activation, in the place of its input."""

Remat = Literal["none", "dots", "attention", "full"]
"""What is computed again: see `ModelConfig.remat`."""

_SAVED: Mapping[Remat, tuple[Saved, ...]] = {
    "dots": ("product", "row", "few_bit", "attention"),
    "attention": ("row", "attention"),
    "full": (),
}


def checkpoint_as(name: Saved, x: Array) -> Array:
    """x, under a name that the policies here know."""
    return checkpoint_name(x, name)


def remat_block(block: Callable[..., Any], remat: Remat, *, looped: bool) -> Callable[..., Any]:
    """A transformer's block, of whose values the backward pass finds those of `remat` alone.

    `looped`: it is a loop's body, which keeps forward and backward pass apart. Elsewhere XLA would
    merge what is computed again with what it replaces, and must be kept from it.
    """
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.save_only_these_names(*_SAVED[remat])
    return jax.checkpoint(block, policy=policy, prevent_cse=not looped)


def remat_hidden(down: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The second half of a feed-forward block, whose hidden layer is computed again.

    It is applied to pre-activations, which are saved, or with a few-bit activation the hidden layer
    itself; under any other `remat` than "none", `remat_block` decides for the whole block.
    """
    if remat != "none":
        return down
    policy = jax.checkpoint_policies.save_only_these_names("product", "row", "few_bit")
    return jax.checkpoint(down, policy=policy, prevent_cse=False)
