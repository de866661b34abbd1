"""Products of groups of rows with a matrix each, as a mixture of experts needs them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax._errors import require
from polycom_jax.kernels.grouped_matmul import loop, megablox, triton, xla
from polycom_jax.kernels.implementations import GroupedImplementation, Kernel, Operation

GROUPED_MATMUL = Operation(
    "grouped_matmul",
    {
        "xla": Kernel(xla.grouped_matmul),
        "loop": Kernel(loop.grouped_matmul),
        "megablox": Kernel(megablox.grouped_matmul, megablox.unsupported_reason),
        "triton": Kernel(triton.grouped_matmul, triton.unsupported_reason),
    },
)


def grouped_matmul(
    x: Float[Array, "R K"],
    w: Float[Array, "E K M"],
    sizes: Int[Array, " E"],
    *,
    implementation: GroupedImplementation | None = None,
) -> Float[Array, "R M"]:
    """The first sizes[0] rows of x times w[0], the next sizes[1] rows times w[1], and so on.

    Args:
        x: rows, sorted by group.
        w: one matrix a group, of the dtype of `x`.
        sizes: rows of each group, of any integer dtype; their sum is at most R, which nothing can
            check.
        implementation: None for the backend's best, or
            "xla": `jax.lax.ragged_dot`, which is one kernel on TPUs, and on CPUs and GPUs
            multiplies all rows with every matrix;
            "loop": blocks of rows one after the other, R + E x (block - 1) of them at most;
            "megablox": JAX's TPU kernels; bfloat16 and float32, R a multiple of 128, K and M of at
            most 16 KiB;
            "triton": kernels for NVIDIA GPUs of compute capability 8.0 or more; bfloat16, float16,
            and float32 by TF32 unless `jax.default_matmul_precision` asks for more.

    Returns:
        [R, M] in the dtype of `x`, float32 inside (float64 for float64). Rows behind the last
        group, in it and in the gradient of `x`, may hold anything; the gradient of `w` does not
        feel them. All versions have derivatives of every order in every mode.

    Raises:
        InputError: shapes or dtypes that do not go together, or an implementation that is unknown
            or cannot run here.
    """
    require(
        x.ndim == 2
        and w.ndim == 3
        and x.shape[1] == w.shape[1]
        and sizes.shape == w.shape[:1]
        and sizes.size > 0,
        f"grouped_matmul: expected x [R, K], w [E, K, M] and sizes [E] of a group or more, came"
        f" {x.shape}, {w.shape} and {sizes.shape}.",
    )
    require(
        x.dtype == w.dtype and jnp.issubdtype(sizes.dtype, jnp.integer),
        f"grouped_matmul: expected x and w of one dtype and integer sizes, came {x.dtype},"
        f" {w.dtype} and {sizes.dtype}.",
    )
    # Narrow integers do not hold the sums of sizes, and unsigned ones no negative numbers.
    return GROUPED_MATMUL(x, w, sizes.astype(jnp.int32), implementation=implementation)
