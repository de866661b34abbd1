"""Grouped products and their two gradients, each of which has the others for its own gradients."""

from collections.abc import Callable

from jaxtyping import Array

from polycom_jax.kernels.linear import bilinear_map

Rows = Callable[[Array, Array, Array], Array]
"""rows(x, w, sizes): each row of x times its group's matrix."""
Matrices = Callable[[Array, Array, Array], Array]
"""matrices(x, y, sizes): the sum over each group's rows of x^T y, in the dtype of x."""


def differentiable(product: Rows, transposed: Rows, matrices: Matrices) -> Rows:
    """`product`, with derivatives of every order in every mode, all made of the three functions.

    Args:
        product: x [R, K] times w.
        transposed: y [R, M] times the transpose of w.
        matrices: of x and y.
    """
    by = bilinear_map(
        product, lambda w, dy, sizes: back(dy, w, sizes), lambda x, dy, sizes: outer(x, dy, sizes)
    )
    back = bilinear_map(
        transposed, lambda w, dx, sizes: by(dx, w, sizes), lambda y, dx, sizes: outer(dx, y, sizes)
    )
    outer = bilinear_map(
        matrices, lambda y, dw, sizes: back(y, dw, sizes), lambda x, dw, sizes: by(x, dw, sizes)
    )
    return by
