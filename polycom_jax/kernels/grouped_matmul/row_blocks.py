"""Groups of rows, cut into blocks that are no longer than a group."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class RowBlocks(NamedTuple):
    """Blocks of each group's rows, the last one of a group partly empty.

    Their number is the most that any sizes can make; those that these sizes do not need are empty
    and stand behind the others.

    Attributes:
        group: whose rows they are.
        first: the first of them.
        filled: how many they are.
    """

    group: Int[Array, " N"]
    first: Int[Array, " N"]
    filled: Int[Array, " N"]


def block_count(rows: int, groups: int, block: int) -> int:
    """The most blocks that `rows` in `groups` make, whatever the sizes of these."""
    return (rows + groups * (block - 1)) // block


def row_blocks(sizes: Int[Array, " E"], rows: int, block: int) -> RowBlocks:
    """The blocks of groups of these sizes, which fill `rows` or less."""
    groups = sizes.shape[0]
    blocks = -(-sizes // block)
    ends = jnp.cumsum(blocks)
    index = jnp.arange(block_count(rows, groups, block), dtype=sizes.dtype)
    # All compared at once: a search is a loop, of many small kernels on a GPU.
    group = jnp.searchsorted(ends, index, side="right", method="compare_all")
    group = jnp.minimum(group.astype(sizes.dtype), groups - 1)
    inside = (index - (ends - blocks)[group]) * block
    count = jnp.clip(sizes[group] - inside, 0, block)
    first = (jnp.cumsum(sizes) - sizes)[group] + inside
    # Blocks that these sizes do not need write their nothing behind all rows.
    return RowBlocks(group, jnp.where(count > 0, first, rows), count)
