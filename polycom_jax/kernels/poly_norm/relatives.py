"""PolyNorm's two relatives, made of PolyNorm: poly_norm(relu(x)), and poly_norm(gate) * up."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.activations.rectifier import step
from polycom_jax.kernels.recompute import Gradient, Row, Tangent, Value, recomputed

Rules = tuple[Value, Tangent, Gradient | None]
"""Value, tangent and gradient, as `recomputed` takes them."""
Operations = tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]


def with_relatives(
    value: Value, tangent: Tangent, gradient: Gradient | None = None, row: Row | None = None
) -> Operations:
    """(poly_norm, poly_relu_norm, poly_norm_glu) from what `recomputed` takes of poly_norm.

    `row` takes `relu=True` where it is to take relu(x) in the place of x.
    """
    relu_row = glu_row = None
    if row is not None:
        relu_row = partial(row, relu=True)
        glu_row = lambda primals, **static: row((primals[0], primals[2]), **static)  # noqa: E731
    return (
        recomputed(value, tangent, gradient, row),
        recomputed(*of_relu(value, tangent, gradient), relu_row),
        recomputed(*gated_by(value, tangent, gradient), glu_row),
    )


def of_relu(value: Value, tangent: Tangent, gradient: Gradient | None) -> Rules:
    """The rules of poly_norm(relu(x))."""

    def relu_value(x: Array, coeffs: Array, **static: Any) -> Array:
        return value(jax.nn.relu(x), coeffs, **static)

    def relu_tangent(primals: Any, tangents: Any, **static: Any) -> Array:
        (x, coeffs), (dx, dcoeffs) = primals, tangents
        return tangent((jax.nn.relu(x), coeffs), (step(x) * dx, dcoeffs), **static)

    def relu_gradient(primals: Any, g: Array, **static: Any) -> tuple[Array, Array]:
        x, coeffs = primals
        assert gradient is not None
        dx, dcoeffs = gradient((jax.nn.relu(x), coeffs), g, **static)
        return jnp.where(x > 0, dx, 0), dcoeffs

    return relu_value, relu_tangent, relu_gradient if gradient else None


def gated_by(value: Value, tangent: Tangent, gradient: Gradient | None) -> Rules:
    """The rules of poly_norm(gate) * up."""

    def glu_value(gate: Array, up: Array, coeffs: Array, **static: Any) -> Array:
        return value(gate, coeffs, **static) * up

    def glu_tangent(primals: Any, tangents: Any, **static: Any) -> Array:
        (gate, up, coeffs), (dgate, dup, dcoeffs) = primals, tangents
        change = tangent((gate, coeffs), (dgate, dcoeffs), **static)
        return change * up + value(gate, coeffs, **static) * dup

    def glu_gradient(primals: Any, g: Array, **static: Any) -> tuple[Array, Array, Array]:
        gate, up, coeffs = primals
        assert gradient is not None
        dgate, dcoeffs = gradient((gate, coeffs), g * up, **static)
        return dgate, g * value(gate, coeffs, **static), dcoeffs

    return glu_value, glu_tangent, glu_gradient if gradient else None
