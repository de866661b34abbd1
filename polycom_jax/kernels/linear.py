"""Linear and bilinear maps with transposes of their own, under all of JAX's transformations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array

from polycom_jax.kernels.primitives import (
    Primitive,
    Zero,
    instantiate_zeros,
    is_undefined_primal,
    new_primitive,
)
from polycom_jax.kernels.sharded import match_varying

Forward = Callable[[Sequence[Array], Sequence[Array]], Array]
"""forward(fixed, operands): linear in `operands`."""
Backward = Callable[[Sequence[Array], Array], Sequence[Array]]
"""backward(fixed, cotangent): a cotangent for each of `operands`."""
Product = Callable[..., Array]
"""product(a, b, *fixed): linear in a and in b."""


def linear_map(
    forward: Forward,
    backward: Backward,
    fixed: Sequence[Array],
    operands: Sequence[Array],
    like: Array | jax.ShapeDtypeStruct | None = None,
) -> Array:
    """forward(fixed, operands), whose transpose is `backward`.

    JAX transposes a fused forward pass piece by piece; a hand-written transpose can share passes
    over memory. Unlike `jax.custom_vjp` it leaves forward mode as it is, and unlike
    `jax.custom_derivatives.linear_call` it has a batching rule. Nothing but `fixed` is saved for
    the backward pass. Derivatives in `fixed` are JAX's, of `forward`.

    Args:
        forward: the map.
        backward: its transpose.
        fixed: arrays, of integers too, that the map depends on.
        operands: arrays that it is linear in.
        like: the result's shape and dtype; None: those of `operands[0]`.
    """
    like = operands[0] if like is None else like
    args = match_varying(*fixed, *operands)
    shape = tuple(like.shape)
    return _linear.bind(
        *args, forward=forward, backward=backward, split=len(fixed), shape=shape, dtype=like.dtype
    )


def bilinear_map(product: Product, by_a: Product, by_b: Product) -> Product:
    """`product`, whose derivatives are products again: with a cotangent y' of the result,

        a' = by_a(b, y', *fixed),  b' = by_b(a, y', *fixed).

    Where these are bilinear maps themselves, derivatives of every order exist in every mode.
    """

    @jax.custom_jvp
    def function(a: Array, b: Array, *fixed: Array) -> Array:
        return product(a, b, *fixed)

    def swapped(b: Array, a: Array, *fixed: Array) -> Array:
        return function(a, b, *fixed)

    def rule(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Array]:
        a, b, *fixed = primals
        out, change = function(*primals), None
        for f, gradient, tangent, other in (
            (function, by_a, tangents[0], b),
            (swapped, by_b, tangents[1], a),
        ):
            if not isinstance(tangent, SymbolicZero):
                part = _in_first(f, gradient, tangent, (other, *fixed), out)
                change = part if change is None else change + part
        return out, jnp.zeros_like(out) if change is None else change

    function.defjvp(rule, symbolic_zeros=True)
    return function


def _in_first(
    product: Product, gradient: Product, operand: Array, fixed: Sequence[Array], out: Array
) -> Array:
    """product(operand, *fixed) as a linear map of `operand`."""

    def forward(fixed: Sequence[Array], operands: Sequence[Array]) -> Array:
        return product(operands[0], *fixed)

    def backward(fixed: Sequence[Array], cotangent: Array) -> Sequence[Array]:
        return [gradient(fixed[0], cotangent, *fixed[1:])]

    return linear_map(forward, backward, fixed, (operand,), out)


def _run(*args: Array, forward: Forward, split: int, **_other: Any) -> Array:
    return forward(args[:split], args[split:])


def _abstract(*args: Any, split: int, shape: tuple[int, ...], dtype: Any, **_other: Any) -> Any:
    of = args[split]
    if of.shape == shape:
        return of.update(dtype=dtype)
    whole = of.sharding.update(spec=PartitionSpec(*[None] * len(shape)))
    return of.update(shape=shape, dtype=dtype, sharding=whole)


def _jvp(
    args: Sequence[Array],
    tangents: Sequence[Any],
    *,
    forward: Forward,
    backward: Backward,
    split: int,
    shape: tuple[int, ...],
    dtype: Any,
) -> tuple[Array, Array]:
    fixed, operands = args[:split], args[split:]
    like = jax.ShapeDtypeStruct(shape, dtype)
    out = linear_map(forward, backward, fixed, operands, like)
    change = jnp.zeros_like(out)
    along_fixed, along_operands = tangents[:split], tangents[split:]
    if _any_nonzero(along_operands):
        change += linear_map(forward, backward, fixed, _instantiate(along_operands), like)
    if _any_nonzero(along_fixed):

        def at(*fixed: Array) -> Array:
            return forward(fixed, operands)

        change += jax.jvp(at, tuple(fixed), tuple(_instantiate(along_fixed)))[1]
    return out, change


def _any_nonzero(tangents: Sequence[Any]) -> bool:
    return any(not isinstance(t, Zero) for t in tangents)


def _instantiate(tangents: Sequence[Any]) -> list[Array]:
    return [instantiate_zeros(t) for t in tangents]


def _transpose(
    cotangent: Any, *args: Any, backward: Backward, split: int, **_other: Any
) -> list[Array | None]:
    if isinstance(cotangent, Zero):
        return [None] * len(args)
    grads = backward(args[:split], cotangent)
    wanted = [is_undefined_primal(arg) for arg in args[split:]]
    return [None] * split + [g if want else None for g, want in zip(grads, wanted, strict=True)]


def _batch(
    args: Sequence[Array],
    axes: Sequence[Any],
    *,
    forward: Forward,
    backward: Backward,
    split: int,
    shape: tuple[int, ...],
    dtype: Any,
) -> tuple[Array, int]:
    size = next(a.shape[d] for a, d in zip(args, axes, strict=True) if d is not None)
    # Each of `operands` gets a cotangent as large as itself: these are all batched, and transposing
    # the broadcast then sums where that is due.
    batched, in_axes = [], []
    for i, (arg, axis) in enumerate(zip(args, axes, strict=True)):
        if axis is not None:
            arg = jnp.moveaxis(arg, axis, 0)
        elif i >= split:
            arg = jnp.broadcast_to(arg[None], (size, *arg.shape))
        batched.append(arg)
        in_axes.append(None if axis is None and i < split else 0)
    where = tuple(in_axes[:split])

    def forward_all(fixed: Sequence[Array], operands: Sequence[Array]) -> Array:
        return jax.vmap(forward, (where, 0))(tuple(fixed), tuple(operands))

    def backward_all(fixed: Sequence[Array], cotangent: Array) -> Sequence[Array]:
        return jax.vmap(backward, (where, 0))(tuple(fixed), cotangent)

    like = jax.ShapeDtypeStruct((size, *shape), dtype)
    return linear_map(forward_all, backward_all, batched[:split], batched[split:], like), 0


_linear: Primitive = new_primitive(
    "linear_map", _run, _abstract, batch=_batch, jvp=_jvp, transpose=_transpose
)
