"""Grouped products by Triton kernels for NVIDIA GPUs, in tiles of rows of one group each.

A tile begins where its group does or the tile before it ends; rows beyond its group's end are
neither read nor written. No two programs add to one number, so that what is computed twice is the
same to the last bit.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.gpu_call import Call, gpu_call, unsupported_on_gpu
from polycom_jax.kernels.grouped_matmul.derivatives import Rows, differentiable
from polycom_jax.kernels.grouped_matmul.row_blocks import row_blocks
from polycom_jax.kernels.grouped_matmul.tile import Tile


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

    def call(group: Array, first: Array, filled: Array, x: Array, w: Array) -> Sequence[Array]:
        from polycom_jax.kernels.grouped_matmul import triton_kernels

        width = w.shape[1 if transposed else 2]
        body = partial(triton_kernels.rows, tile=tile, transposed=transposed)
        out = jax.ShapeDtypeStruct((x.shape[0], width), x.dtype)
        programs = group.size * -(-width // tile.columns)
        arrays = (group, first, filled, x, w)
        return _run(body, f"grouped_rows_{tile.rows}", arrays, out, programs, interpret)

    return call


@cache
def _matrices(tile: Tile, interpret: bool) -> Call:
    """call(first, sizes, x, y) -> the sum over each group's rows of x^T y."""

    def call(first: Array, sizes: Array, x: Array, y: Array) -> Sequence[Array]:
        from polycom_jax.kernels.grouped_matmul import triton_kernels

        out = jax.ShapeDtypeStruct((sizes.size, x.shape[1], y.shape[1]), x.dtype)
        body = partial(triton_kernels.matrices, tile=tile)
        tiles = -(-x.shape[1] // tile.rows) * -(-y.shape[1] // tile.columns)
        programs, arrays = sizes.size * tiles, (first, sizes, x, y)
        return _run(body, f"grouped_matrices_{tile.depth}", arrays, out, programs, interpret)

    return call


def _run(
    body: Callable[..., None],
    name: str,
    arrays: Sequence[Array],
    out: jax.ShapeDtypeStruct,
    programs: int,
    interpret: bool,
) -> Sequence[Array]:
    """The call; its name ends with the rows of a step, from which its FLOPs are counted."""
    from polycom_jax.kernels import triton  # Pallas is slow to import

    how: dict[str, Any] = {
        "warps": SCHEDULE.warps,
        "stages": SCHEDULE.stages,
        "interpret": interpret,
    }
    return triton.call(name, body, arrays, [out], programs=programs, **how)
