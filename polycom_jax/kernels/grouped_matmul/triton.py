"""Grouped products by Triton kernels for NVIDIA GPUs, in tiles of rows of one group each.

A tile begins where its group does or the tile before it ends; rows beyond its group's end are
neither read nor written. No two programs add to one number, so that what is computed twice is the
same to the last bit.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.gpu_call import Call, gpu_call, unsupported_on_gpu
from polycom_jax.kernels.grouped_matmul import triton_kernels as kernels
from polycom_jax.kernels.grouped_matmul.derivatives import Rows, differentiable
from polycom_jax.kernels.grouped_matmul.row_blocks import row_blocks
from polycom_jax.kernels.grouped_matmul.triton_kernels import Tile


class Schedule(NamedTuple):
    """How a program is run.

    Attributes:
        warps: that share a tile.
        stages: steps whose operands are on their way at once.
    """

    warps: int
    stages: int


SCHEDULE = Schedule(warps=8, stages=3)

ROWS = (32, 128)
"""Least and most rows of a tile."""

COLUMNS, DEPTH_BYTES = 128, 128
"""Of a tile, and of the operands of one step: three stages of the largest tiles fit the shared
memory of the smallest cards, 99 KiB (L4)."""


def grouped_matmul(
    x: Float[Array, "R K"],
    w: Float[Array, "E K M"],
    sizes: Int[Array, " E"],
    *,
    interpret: bool = False,
) -> Float[Array, "R M"]:
    """See `api.grouped_matmul`; rows behind the last group hold what was in memory before.

    `interpret` runs the kernels as plain operations on any backend, for tests.
    """
    return _product(interpret)(x, w, sizes.astype(jnp.int32))


def unsupported_reason(x: Array, w: Array, sizes: Array, **_static: Any) -> str | None:
    """A reason against, or None."""
    if 0 in (*x.shape, *w.shape):
        return f"x {x.shape} or w {w.shape} is empty"
    if any(jax.typeof(a).manual_axis_type.varying for a in (x, w, sizes)):
        return "jax.shard_map checks what varies over the mesh (check_vma), undeclared here"
    return unsupported_on_gpu(x)


def row_tile(rows: int, groups: int, itemsize: int) -> Tile:
    """The tile of a product of so many rows: at most half as high as groups are on average.

    Half a tile of each group, on average, is computed for nothing.
    """
    least, most = ROWS
    height = min(max(1 << max(rows // groups // 2, 1).bit_length() - 1, least), most)
    return Tile(height, COLUMNS, DEPTH_BYTES // itemsize)


def matrix_tile(itemsize: int) -> Tile:
    """The tile of the matrices' gradient, whose depth is the rows of a step."""
    return Tile(COLUMNS, COLUMNS, DEPTH_BYTES // itemsize)


@cache
def _product(interpret: bool) -> Rows:
    def call(kernel: Call, *arrays: Array) -> Array:
        if interpret:
            return kernel(*arrays)[0]
        return gpu_call(kernel, *arrays, implementation="triton")[0]

    def rows(x: Array, w: Array, sizes: Array, *, transposed: bool) -> Array:
        tile = row_tile(x.shape[0], w.shape[0], x.dtype.itemsize)
        blocks = row_blocks(sizes, x.shape[0], tile.rows)
        return call(_rows(tile, transposed, interpret), *blocks, x, w)

    def matrices(x: Array, y: Array, sizes: Array) -> Array:
        first = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
        return call(_matrices(matrix_tile(x.dtype.itemsize), interpret), first, sizes, x, y)

    return differentiable(partial(rows, transposed=False), partial(rows, transposed=True), matrices)


@cache
def _rows(tile: Tile, transposed: bool, interpret: bool) -> Call:
    """call(group, first, filled, x, w) -> each row of x times its group's matrix."""

    def call(group: Array, first: Array, filled: Array, x: Array, w: Array) -> list[Array]:
        width = w.shape[1 if transposed else 2]
        kernel = partial(kernels.rows, tile=tile, transposed=transposed)
        grid = (group.size * pl.cdiv(width, tile.columns),)
        out = jax.ShapeDtypeStruct((x.shape[0], width), x.dtype)
        name = f"grouped_rows_{tile.rows}"
        return [_pallas(kernel, name, grid, out, interpret)(group, first, filled, x, w)]

    return call


@cache
def _matrices(tile: Tile, interpret: bool) -> Call:
    """call(first, sizes, x, y) -> the sum over each group's rows of x^T y."""

    def call(first: Array, sizes: Array, x: Array, y: Array) -> list[Array]:
        shape = (sizes.size, x.shape[1], y.shape[1])
        kernel = partial(kernels.matrices, tile=tile)
        grid = (sizes.size * pl.cdiv(shape[1], tile.rows) * pl.cdiv(shape[2], tile.columns),)
        out = jax.ShapeDtypeStruct(shape, x.dtype)
        name = f"grouped_matrices_{tile.depth}"
        return [_pallas(kernel, name, grid, out, interpret)(first, sizes, x, y)]

    return call


def _pallas(
    kernel: Any, name: str, grid: tuple[int], out: jax.ShapeDtypeStruct, interpret: bool
) -> Any:
    """The call; its name ends with the rows of a step, from which its FLOPs are counted."""
    from jax.experimental.pallas import triton

    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out,
        compiler_params=triton.CompilerParams(num_warps=SCHEDULE.warps, num_stages=SCHEDULE.stages),
        interpret=interpret,
        name=name,
    )
