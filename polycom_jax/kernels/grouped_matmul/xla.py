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

    XLA's TPU backend makes a kernel like `megablox` of it, but copies the matrices for the gradient
    of x, and leaves one of a v4's or v5p's two cores idle where a tile holds a whole matrix
    (experiments/results/speed/README.md, "Grouped products").
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
