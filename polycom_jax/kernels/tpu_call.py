"""A Pallas call for TPU as data, and the block shapes that fit the memory of a core."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from polycom_jax.kernels.restrictions import only_on_tpu
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


def in_lanes(coeffs: Float[Array, " R+1"]) -> Float[Array, "K L"]:
    """Coefficient i in every lane of row i, as registers hold what multiplies a group of rows.

    float32, with rows of 0 up to a whole register.
    """
    column = coeffs.astype(jnp.float32)[:, None]
    padded = jnp.pad(column, ((0, -column.shape[0] % SUBLANES), (0, 0)))
    return jnp.broadcast_to(padded, (padded.shape[0], LANES))


@dataclass(frozen=True)
class Operand:
    """One array of a call, and how the grid walks over it.

    Attributes:
        shape: of the array in HBM.
        dtype: of the array.
        block: the part that a step of the grid holds in VMEM.
        index: index(*step) -> which block, counted in blocks.
    """

    shape: tuple[int, ...]
    dtype: Any
    block: tuple[int, ...]
    index: Callable[..., tuple[Any, ...]]


def tiled(count: int, width: int, dtype: Any) -> tuple[tuple[int, int], Operand]:
    """The grid of the `tile`s of an array [count, width], and the array as it walks over it."""
    rows, columns = tile(count, width, dtype)
    grid = (-(-count // rows), -(-width // columns))
    return grid, Operand((count, width), dtype, (rows, columns), lambda i, j: (i, j))


@dataclass(frozen=True)
class TpuCall:
    """A kernel over a grid whose steps may run in any order.

    Attributes:
        name: shown in profiles.
        grid: steps.
        inputs: arrays read.
        outputs: arrays written.
    """

    name: str
    grid: tuple[int, ...]
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]

    def __call__(
        self, kernel: Callable[..., None], *arrays: Array, interpret: bool
    ) -> tuple[Array, ...]:
        """Runs kernel(*input refs, *output refs) at every step of the grid.

        Args:
            kernel: writes its outputs; returns nothing.
            *arrays: as `inputs` says, all varying over the same axes of a surrounding shard_map.
            interpret: runs it as plain XLA operations on any backend, for tests.

        Raises:
            InputError: it is compiled for anything but a TPU.
        """
        first, *others = arrays
        manual = jax.typeof(first).manual_axis_type
        first = first if interpret else only_on_tpu(first)
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[pl.BlockSpec(o.block, o.index) for o in self.inputs],
            out_specs=[pl.BlockSpec(o.block, o.index) for o in self.outputs],
            out_shape=[
                jax.ShapeDtypeStruct(o.shape, o.dtype, manual_axis_type=manual)
                for o in self.outputs
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",) * len(self.grid)
            ),
            interpret=interpret,
            name=self.name,
        )(first, *others)
