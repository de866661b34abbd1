"""Grouped products as XLA has them."""

import jax
from jaxtyping import Array, Float, Int


def grouped_matmul(
    x: Float[Array, "R K"], w: Float[Array, "E K M"], sizes: Int[Array, " E"]
) -> Float[Array, "R M"]:
    """`jax.lax.ragged_dot`; see `api.grouped_matmul`.

    XLA's TPU backend makes of it a kernel of the form of JAX's megablox: tiles of 128 rows, with an
    expert's whole matrix where VMEM holds it (xla_tpu_scoped_vmem_limit_kib=49152). For the
    gradient of x it copies the matrices, transposed, which megablox's kernel does not: with that,
    in tiles of the same size, the step of tpu_configs/v5p-128-moe-1b-7b takes 2,684 ms in place of
    2,826 (libtpu 0.0.50.1; the kernels themselves at their roofline in both: the prediction is
    blind to tiles, and nobody has timed either).
    """
    return jax.lax.ragged_dot(x, w, sizes)
