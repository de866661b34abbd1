"""The block shapes that fit the memory of a TPU's core; without Pallas, which is slow to import."""

from typing import Any

import jax.numpy as jnp

from polycom_jax.kernels.row_sums import LANES as LANES

SUBLANES = 8
"""Rows of a vector register of 32-bit elements: the smallest height of a block."""

VMEM_BUDGET = 12 * 2**20
"""Bytes that the blocks of one kernel may take, both buffers of each counted. v4 has 16 MiB of VMEM
a core, and the compiler's default limit on a kernel is 16 MiB on the chips that have more; the rest
is for what the compiler spills."""

BLOCK_BYTES = 2**20
"""Blocks are about this large where rows allow it, so that copies, not steps of the grid, take the
time."""

GROUP = 32
"""Rows that a kernel computes on at once. A few registers a value hide the latency of each sum
across lanes, and the 20 or so values that live at once fit the 64 registers."""

_MOST_ROWS = 1024


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is n or more."""
    return -(-n // multiple) * multiple


def tile(count: int, width: int, dtype: Any) -> tuple[int, int]:
    """(rows, columns) of blocks of about `BLOCK_BYTES`, of whole rows if a group of those fits.

    Five such arrays, two buffers each, fit `VMEM_BUDGET`.
    """
    itemsize = jnp.dtype(dtype).itemsize
    lowest = min(GROUP, round_up(count, SUBLANES))
    columns = min(width, BLOCK_BYTES // (lowest * itemsize) // LANES * LANES)
    fit = BLOCK_BYTES // (round_up(columns, LANES) * itemsize)
    rows = min(fit, round_up(count, SUBLANES), _MOST_ROWS) // GROUP * GROUP
    return max(rows, lowest), columns


def whole_row_block(count: int, width: int, dtype: Any, arrays: int) -> int | None:
    """Rows of a block that holds them whole, for a kernel with that many such blocks; None where
    not even the lowest block fits `VMEM_BUDGET`.
    """
    row = round_up(width, LANES) * jnp.dtype(dtype).itemsize
    fit = VMEM_BUDGET // (2 * arrays * row)
    if fit < SUBLANES:
        return None
    wanted = min(fit, max(1, BLOCK_BYTES // row), round_up(count, SUBLANES), _MOST_ROWS)
    if wanted >= GROUP:
        return wanted // GROUP * GROUP
    # One group of any multiple of a register's height.
    return max(SUBLANES, wanted // SUBLANES * SUBLANES)
