"""Grouped products as XLA has them."""

from functools import partial

import jax
from jax.lax import RaggedDotDimensionNumbers
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.grouped_matmul.derivatives import differentiable


def grouped_matmul(
    x: Float[Array, "R K"], w: Float[Array, "E K M"], sizes: Int[Array, " E"]
) -> Float[Array, "R M"]:
    """`jax.lax.ragged_dot`; see `api.grouped_matmul`.

    XLA's TPU backend makes of it a kernel of the form of JAX's megablox: tiles of 128 rows, with an
    expert's whole matrix where VMEM holds it (xla_tpu_scoped_vmem_limit_kib=49152). Two differences
    make `megablox` the better one. For the gradient of x, XLA copies the matrices, transposed: the
    paper's mixture on v5p-128, in four micro-batches, spends 173 of 2,826 ms a step on it, and
    takes 2,684 with `megablox` (by prediction, libtpu 0.0.50.1). And where a tile has a whole
    matrix, the kernel's one parallel dimension has one step, so that the second core of a v4 or v5p
    has nothing to do, which no prediction shows.
    """
    return _product(x, w, sizes)


def _ragged(contract: tuple[int, int], group: list[int], x: Array, y: Array, sizes: Array) -> Array:
    """Contracts a dimension of x with one of y; `group`: the one of y that has the groups."""
    numbers = RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((contract[0],), (contract[1],)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=group,
    )
    return jax.lax.ragged_dot_general(x, y, sizes, numbers)


# JAX's own derivatives of `ragged_dot` are these, but it has none of the last one's.
_product = differentiable(
    jax.lax.ragged_dot, partial(_ragged, (1, 2), [0]), partial(_ragged, (0, 0), [])
)
