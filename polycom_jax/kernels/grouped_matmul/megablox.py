"""Grouped products by JAX's megablox kernels for TPUs, in tiles that fit any TPU's VMEM."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.grouped_matmul.derivatives import Rows, differentiable
from polycom_jax.kernels.restrictions import only_on_tpu, unsupported_on_tpu
from polycom_jax.kernels.tpu_blocks import LANES, round_up

VMEM_BUDGET = 15 * 2**20
"""Bytes that a kernel's tiles, two buffers of each, and its sums take: the compiler's default limit
is 16 MiB, and it needs up to half a MiB itself."""

LONGEST = 16 * 2**10
"""Bytes of the longest row that a product's tiles hold: 8,192 numbers in bfloat16. Cut, the tiles
of a matrix would be read anew for every 128 rows."""

MOST_ROWS = 2048
"""Of a matrix, in a tile of its gradient."""


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
    sizes = sizes.astype(jnp.int32)
    if not interpret:
        sizes = only_on_tpu(sizes, "megablox")
    return _product(interpret)(x, w, sizes)


def tiles(
    k: int, n: int, itemsize: int, *, gradient: bool = False, cores: int = 2
) -> tuple[int, int, int]:
    """(rows, k, n) of a tile, for rows of k times matrices of k x n, or for the matrices' gradient.

    Few rows, as a tile that two groups share is computed for both; of the matrix as much as fits,
    since rows are read anew for each part of n. Sums are float32, and for the gradient as large as
    the matrix's tile. A device's cores share these parts among them, and nothing else.
    """
    tk = min(k, MOST_ROWS) if gradient else k
    padded = round_up(tk, LANES)
    row = 2 * itemsize * LANES * padded
    column = 2 * itemsize * (padded + LANES) + 4 * (padded if gradient else LANES)
    parts = round_up(-(-n // ((VMEM_BUDGET - row) // column // LANES * LANES)), cores)
    return LANES, tk, min(n, round_up(-(-n // parts), LANES))


def tensor_cores() -> int:
    """TensorCores of a device of the mesh of `jax.set_mesh`; without one two, as v4 and v5p have.

    On a chip that has one, two parts cost one reading of the rows.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return getattr(device, "num_cores", None) or 2


def unsupported_reason(x: Array, w: Array, sizes: Array, **_static: Any) -> str | None:
    """A reason against, or None."""
    if x.shape[0] % LANES:
        return f"{x.shape[0]} rows are no multiple of {LANES}"
    if max(w.shape[1:]) * w.dtype.itemsize > LONGEST:
        return f"rows of {max(w.shape[1:])} {w.dtype} are longer than {LONGEST} bytes"
    if any(jax.typeof(a).manual_axis_type.varying for a in (x, w, sizes)):
        return "jax.shard_map checks what varies over the mesh (check_vma), undeclared here"
    return unsupported_on_tpu(x, w, sizes)


@cache
def _product(interpret: bool) -> Rows:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

    def rows(x: Array, w: Array, sizes: Array, *, transposed: bool) -> Array:
        k, n = w.shape[1:] if not transposed else w.shape[:0:-1]
        tiling = tiles(k, n, x.dtype.itemsize, cores=tensor_cores())
        return gmm(x, w, sizes, x.dtype, tiling, transpose_rhs=transposed, interpret=interpret)

    def matrices(x: Array, y: Array, sizes: Array) -> Array:
        k, n = x.shape[1], y.shape[1]
        tiling = tiles(k, n, x.dtype.itemsize, gradient=True, cores=tensor_cores())
        return tgmm(x.T, y, sizes, x.dtype, tiling, interpret=interpret)

    return differentiable(partial(rows, transposed=False), partial(rows, transposed=True), matrices)
