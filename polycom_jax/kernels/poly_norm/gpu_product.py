"""PolyNorm or a relative of it, times a matrix, on NVIDIA GPUs: rows are read once less.

In the backward pass the gradient of the matrix needs the value again. The kernel of the gradient
holds each row in registers and writes the value, too, so that no other kernel reads the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.linear import linear_map
from polycom_jax.kernels.poly_norm import pallas_gpu
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.pallas_gpu import Static
from polycom_jax.kernels.sharded import on_local_rows
from polycom_jax.sharding import Rules

Arrays = Sequence[Array]


@dataclass(frozen=True)
class _Product:
    """act(*inputs, coeffs) w, whose rows each lie on one device by `rules`."""

    static: Static
    rules: Rules | None

    def value_and_row(self, *primals: Array) -> tuple[Array, Array]:
        *inputs, coeffs = primals

        def own(coeffs: Array, *inputs: Array) -> tuple[Arrays, Arrays]:
            return pallas_gpu.value_and_row(self.static, *inputs, coeffs), ()

        with jax.named_scope("activation"):
            (y, row_stats), _ = on_local_rows(own, self.rules, coeffs, *inputs)
        return y, row_stats

    def gradient(self, fixed: Arrays, dy: Array) -> tuple[Arrays, Array]:
        """(gradients of inputs and coefficients, the value)."""
        *inputs, coeffs, row_stats = fixed

        def own(coeffs: Array, *rows: Array) -> tuple[Arrays, Arrays]:
            *inputs, row_stats, dy = rows
            arrays = (*inputs, coeffs, row_stats, dy)
            *whole, dcoeffs = pallas_gpu.gradient(replace(self.static, value=True), *arrays)
            return whole, (dcoeffs,)

        with jax.named_scope("activation"):
            rows = (*inputs, row_stats, dy)
            (*grads, y), (dcoeffs,) = on_local_rows(own, self.rules, coeffs, *rows)
        return [*grads, dcoeffs], y

    def forward(self, fixed: Arrays, tangents: Arrays) -> Array:
        """The product's change, from the matrix, inputs, coefficients and row statistics."""
        (w, *own), (dw, *changes) = fixed, tangents
        y = self.static.plain_value(*own[:-1])
        return _dot(self.static.forward(own, changes), w) + _dot(y, dw)

    def backward(self, fixed: Arrays, g: Array) -> Arrays:
        """The transpose of `forward`."""
        w, *own = fixed
        y = jax.ShapeDtypeStruct(own[0].shape, own[0].dtype)
        (dy,) = jax.linear_transpose(lambda y: _dot(y, w), y)(g)
        grads, value = self.gradient(own, dy)
        (dw,) = jax.linear_transpose(partial(_dot, value), w)(g)
        return [dw, *grads]


def _dot(y: Float[Array, "*N F"], w: Float[Array, "F D"]) -> Float[Array, "*N D"]:
    with jax.named_scope("ffn_down"):
        return jnp.dot(y, w)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(product: _Product, w: Array, *primals: Array) -> Array:
    return _dot(product.value_and_row(*primals)[0], w)


@_run.defjvp
def _rule(product: _Product, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    w, *own = primals
    y, row_stats = product.value_and_row(*own)
    out, fixed = _dot(y, w), (w, *own, checkpoint_as("row", row_stats))
    return out, linear_map(product.forward, product.backward, fixed, tangents, out)


def activated_product(
    form: Form,
    rules: Rules | None,
    w: Float[Array, "F D"],
    coeffs: Float[Array, " R+1"],
    *inputs: Float[Array, "*N F"],
    interpret: bool = False,
) -> Float[Array, "*N D"]:
    """act(*inputs, coeffs) w, for one of the three operations on rows.

    Args:
        form: which of them.
        rules: where tokens lie on the mesh of `jax.set_mesh`; each device holds whole rows, and no
            other holds the same.
        w: the matrix.
        coeffs: of the polynomial, ascending.
        *inputs: x, or gate and up.
        interpret: run the kernels as XLA operations on any backend, for tests.

    Returns:
        The product, in the dtype of `inputs`. Saved for the backward pass: the arguments, and
        order + 1 statistics of each row. Derivatives of every order exist in every mode.
    """
    product = _Product(Static(form, interpret), rules)
    return _run(product, w, *inputs, coeffs)
