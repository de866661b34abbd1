"""Grouped products as XLA has them."""

import jax
from jaxtyping import Array, Float, Int


def grouped_matmul(
    x: Float[Array, "R K"], w: Float[Array, "E K M"], sizes: Int[Array, " E"]
) -> Float[Array, "R M"]:
    """`jax.lax.ragged_dot`; see `api.grouped_matmul`.

    XLA's TPU backend makes of it a kernel of the form of JAX's megablox: tiles of 128 rows, with an
    expert's whole matrix where VMEM holds it (xla_tpu_scoped_vmem_limit_kib=49152). For the
    gradient of x it copies the matrices, transposed, which megablox's kernel does not: 173 of the
    2,826 ms of the step of tpu_configs/v5p-128-moe-1b-7b (libtpu 0.0.50.1; with experts split over
    their width megablox, in tiles of the same size, was compiled, and came to 2,859 ms in place of
    2,887). The kernels themselves stand at their roofline in both: the prediction is blind to
    tiles, and nobody has timed either, so XLA's own choice it is.
    """
    return jax.lax.ragged_dot(x, w, sizes)
