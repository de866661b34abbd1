"""A Pallas call for TPU as data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from polycom_jax.kernels.restrictions import only_on_tpu
from polycom_jax.kernels.tpu_blocks import LANES, SUBLANES, tile


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
