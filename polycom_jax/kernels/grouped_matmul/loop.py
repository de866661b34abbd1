"""Grouped products in blocks of rows, for backends whose `ragged_dot` multiplies everything.

Each group is cut into blocks of BLOCK rows, the last one partly empty. A loop takes one block at a
time, with the matrix of its group; the number of blocks is the most that any sizes can make.

Batched products over gathered matrices are no faster, and much slower where matrices are many or
large (experiments/results/speed/README.md, "Grouped products").
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.kernels.grouped_matmul.derivatives import differentiable
from polycom_jax.kernels.grouped_matmul.row_blocks import RowBlocks, row_blocks

BLOCKS = (32, 128)
"""Least and most rows of a block."""


def block_rows(rows: int, groups: int) -> int:
    """Rows of a block: a power of two, about what a group has."""
    least, most = BLOCKS
    return min(max(1 << max(rows // groups, 1).bit_length() - 1, least), most)


def _block(x: Float[Array, "R K"], first: Array, real: Bool[Array, " B"]) -> Float[Array, "B K"]:
    # Rows of the next group, or behind the last one, may hold anything.
    rows = jax.lax.dynamic_slice_in_dim(x, first, real.size)
    return jnp.where(real[:, None], rows, 0)


def _rows(
    x: Float[Array, "R K"], w: Float[Array, "E _ _"], sizes: Int[Array, " E"], contract: int
) -> Float[Array, "R M"]:
    """Each row times its group's matrix, whose dimension `contract` goes with the row's."""
    rows, block = x.shape[0], block_rows(x.shape[0], w.shape[0])
    padded, wide = jnp.pad(x, ((0, block), (0, 0))), work_dtype(x.dtype)
    index = jnp.arange(block)

    def one(out: Array, at: RowBlocks) -> tuple[Array, None]:
        part = _block(padded, at.first, index < at.filled)
        matrix = jax.lax.dynamic_index_in_dim(w, at.group, keepdims=False)
        y = jax.lax.dot_general(
            part, matrix, (((1,), (contract - 1,)), ((), ())), preferred_element_type=wide
        )
        # What it writes too much, the next block overwrites.
        return jax.lax.dynamic_update_slice_in_dim(out, y.astype(x.dtype), at.first, 0), None

    out = jnp.zeros((rows + block, w.shape[3 - contract]), x.dtype)
    return jax.lax.scan(one, out, row_blocks(sizes, rows, block))[0][:rows]


def _matrices(
    x: Float[Array, "R K"], dy: Float[Array, "R M"], sizes: Int[Array, " E"]
) -> Float[Array, "E K M"]:
    """The sum over each group's rows of x^T dy, summed in the work dtype."""
    block, wide = block_rows(x.shape[0], sizes.shape[0]), work_dtype(x.dtype)
    x, dy = (jnp.pad(a, ((0, block), (0, 0))) for a in (x, dy))
    index = jnp.arange(block)

    def one(sums: Array, at: RowBlocks) -> tuple[Array, None]:
        real = index < at.filled
        product = jax.lax.dot_general(
            _block(x, at.first, real),
            _block(dy, at.first, real),
            (((0,), (0,)), ((), ())),
            preferred_element_type=wide,
        )
        before = jax.lax.dynamic_index_in_dim(sums, at.group, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(sums, before + product, at.group, 0), None

    sums = jnp.zeros((sizes.shape[0], x.shape[1], dy.shape[1]), wide)
    sums = jax.lax.scan(one, sums, row_blocks(sizes, x.shape[0] - block, block))[0]
    return sums.astype(x.dtype)


grouped_matmul = differentiable(partial(_rows, contract=1), partial(_rows, contract=2), _matrices)
"""See `api.grouped_matmul`; rows behind the last group are zeros."""
