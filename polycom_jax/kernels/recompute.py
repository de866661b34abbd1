"""Derivative rules that save little more than the arguments for the backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from polycom_jax.activations.inputs import in_work_dtype, work_dtype
from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.linear import Backward, Forward, chosen, linear_map, merged

Value = Callable[..., Array]
"""value(*arrays, **static) in the work dtype."""
Tangent = Callable[..., Array]
"""tangent(primals, tangents, **static) in the work dtype: what `value` changes by, linearly. With a
`Row`, it takes `residuals`, too: what that gave."""
Row = Callable[..., list[Array]]
"""row(primals, **static): statistics of each row, in the work dtype, that value and tangent need.
It takes arrays in any dtype."""
Gradient = Callable[..., Sequence[Array]]
"""gradient(primals, cotangent, **static) in the work dtype: the transpose of `tangent`; with a
`Row`, it takes `residuals`, too."""


def recomputed(
    value: Value, tangent: Tangent | None, gradient: Gradient | None = None, row: Row | None = None
) -> Callable[..., Array]:
    """`value` with derivative `tangent`; both recompute what they need from the arguments.

    It is a `jax.custom_jvp`, so forward mode differentiates it directly, reverse mode transposes
    its tangent, and both can be differentiated again. The transpose is `gradient`, or JAX's own.
    A `tangent` of None is that of `value`, by JAX, along the arguments that move: no zero stands
    for the others, which would meet infinite derivatives.
    Each argument enters, and is saved, in its own dtype; the result has the dtype of the first one.
    What `row` returns is saved too, and handed to `tangent` and `gradient` as `residuals`, so that
    the backward pass does not read the row again for it.

    Returns:
        f(*arrays, **static), compiled also when called eagerly; `static` must be hashable.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def function(static: tuple[tuple[str, Any], ...], *arrays: Array) -> Array:
        return in_work_dtype(partial(value, **dict(static)), *arrays)

    @partial(function.defjvp, symbolic_zeros=True)
    def rule(
        static: tuple[tuple[str, Any], ...], primals: tuple[Array, ...], tangents: tuple[Any, ...]
    ) -> tuple[Array, Array]:
        options = dict(static)
        if row is None:
            residuals: list[Array] = []
            out = function(static, *primals)
        else:
            residuals = [checkpoint_as("row", statistic) for statistic in row(primals, **options)]
            out = in_work_dtype(partial(value, residuals=residuals, **options), *primals)
        moves, inputs = [not isinstance(t, SymbolicZero) for t in tangents], len(primals)
        own = _derivative(value, moves) if tangent is None else _filled(tangent, moves)
        forward = along(own, inputs, options)
        backward = (
            _against(gradient, moves, options) if gradient else transposed(forward, inputs, moves)
        )
        fixed, moved = (*primals, *residuals), chosen(moves, tangents)
        return out, linear_map(forward, backward, fixed, moved, out)

    @partial(jax.jit, static_argnums=0)
    def compiled(static: tuple[tuple[str, Any], ...], *arrays: Array) -> Array:
        return function(static, *arrays)

    def call(*arrays: Array, **static: Any) -> Array:
        return compiled(tuple(sorted(static.items())), *arrays)

    return call


def along(tangent: Tangent, inputs: int, options: dict[str, Any]) -> Forward:
    """`tangent` of arrays in their own dtypes; fixed are the primals and the residuals."""

    def forward(fixed: Sequence[Array], tangents: Sequence[Array]) -> Array:
        primals, residuals = fixed[:inputs], fixed[inputs:]
        more = {"residuals": residuals} if residuals else {}

        def split(*both: Array) -> Array:
            return tangent(both[:inputs], both[inputs:], **more, **options)

        return in_work_dtype(split, *primals, *tangents)

    return forward


def _derivative(value: Value, moves: Sequence[bool]) -> Tangent:
    """The derivative of `value`, by JAX, along those arguments that move."""

    def tangent(primals: Sequence[Array], tangents: Sequence[Array], **static: Any) -> Array:
        def of_moving(*moving: Array) -> Array:
            return value(*merged(moves, moving, primals), **static)

        return jax.jvp(of_moving, chosen(moves, primals), list(tangents))[1]

    return tangent


def _filled(tangent: Tangent, moves: Sequence[bool]) -> Tangent:
    """`tangent` along those arguments that move, zeros for the others."""

    def along_all(primals: Sequence[Array], tangents: Sequence[Array], **static: Any) -> Array:
        still = [p if move else jnp.zeros_like(p) for move, p in zip(moves, primals, strict=True)]
        return tangent(primals, merged(moves, tangents, still), **static)

    return along_all


def transposed(forward: Forward, inputs: int, moves: Sequence[bool] | None = None) -> Backward:
    """JAX's own transpose, in those of the inputs that move; None: in all."""

    def backward(fixed: Sequence[Array], cotangent: Array) -> Sequence[Array]:
        like = fixed[:inputs] if moves is None else chosen(moves, fixed[:inputs])
        return jax.linear_transpose(partial(forward, fixed), like)(cotangent)[0]

    return backward


def _against(gradient: Gradient, moves: Sequence[bool], options: dict[str, Any]) -> Backward:
    """`gradient` of arrays in their own dtypes, of those that move; each comes back in its own."""
    inputs = len(moves)

    def backward(fixed: Sequence[Array], cotangent: Array) -> Sequence[Array]:
        primals, residuals = fixed[:inputs], fixed[inputs:]
        more = {"residuals": residuals} if residuals else {}
        dtype = work_dtype(primals[0].dtype)
        wide = tuple(p.astype(dtype) for p in primals)
        grads = gradient(wide, cotangent.astype(dtype), **more, **options)
        wanted = zip(chosen(moves, grads), chosen(moves, primals), strict=True)
        return [g.astype(p.dtype) for g, p in wanted]

    return backward
