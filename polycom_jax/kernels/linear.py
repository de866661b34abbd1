"""Linear and bilinear maps with transposes of their own, under all of JAX's transformations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        like: the result's shape and dtype, and of an array the explicit axes of a mesh that split
            it; None: those of `operands[0]`.
    """
    out: Any = jax.typeof(operands[0] if like is None else like)
    static = _Map(forward, backward, len(fixed), tuple(out.shape), out.dtype, out.sharding.spec)
    return _linear.bind(*match_varying(*fixed, *operands), static=static)


@dataclass(frozen=True)
class _Map:
    forward: Forward
    backward: Backward
    num_fixed: int
    shape: tuple[int, ...]
    dtype: Any
    spec: PartitionSpec

    def divided(self, args: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        return args[: self.num_fixed], args[self.num_fixed :]


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


def _run(*args: Array, static: _Map) -> Array:
    return static.forward(*static.divided(args))


def _abstract(*args: Any, static: _Map) -> Any:
    like = args[static.num_fixed]
    sharding = like.sharding.update(spec=static.spec)
    return like.update(shape=static.shape, dtype=static.dtype, sharding=sharding)


def _jvp(args: Sequence[Array], tangents: Sequence[Any], *, static: _Map) -> tuple[Array, Array]:
    fixed, operands = static.divided(args)
    along_fixed, along_operands = static.divided(tangents)
    out = _linear.bind(*args, static=static)
    change = jnp.zeros_like(out)
    if _any_nonzero(along_operands):
        along = [instantiate_zeros(t) for t in along_operands]
        change += linear_map(static.forward, static.backward, fixed, along, out)
    if _any_nonzero(along_fixed):
        moves = [not isinstance(t, Zero) for t in along_fixed]

        def at(*moved: Array) -> Array:
            return static.forward(merged(moves, moved, fixed), operands)

        moved = [t for t in along_fixed if not isinstance(t, Zero)]
        change += jax.jvp(at, chosen(moves, fixed), moved)[1]
    return out, change


def _any_nonzero(tangents: Sequence[Any]) -> bool:
    return any(not isinstance(t, Zero) for t in tangents)


def chosen(moves: Sequence[bool], arrays: Sequence[Array]) -> list[Array]:
    """Those arrays that move."""
    return [array for move, array in zip(moves, arrays, strict=True) if move]


def merged(moves: Sequence[bool], moved: Sequence[Array], still: Sequence[Array]) -> list[Array]:
    """`moved`, at their places among all: the others are those of `still`."""
    own = iter(moved)
    return [next(own) if move else array for move, array in zip(moves, still, strict=True)]


def _transpose(cotangent: Any, *args: Any, static: _Map) -> list[Array | None]:
    if isinstance(cotangent, Zero):
        return [None] * len(args)
    fixed, operands = static.divided(args)
    grads = static.backward(fixed, cotangent)
    wanted = [g if is_undefined_primal(x) else None for g, x in zip(grads, operands, strict=True)]
    return [None] * len(fixed) + wanted


def _batch(args: Sequence[Array], axes: Sequence[Any], *, static: _Map) -> tuple[Array, int]:
    split = static.num_fixed
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
        return jax.vmap(static.forward, (where, 0))(tuple(fixed), tuple(operands))

    def backward_all(fixed: Sequence[Array], cotangent: Array) -> Sequence[Array]:
        return jax.vmap(static.backward, (where, 0))(tuple(fixed), cotangent)

    first = next(i for i, axis in enumerate(axes) if axis is not None)
    along = jax.typeof(batched[first]).sharding.spec[0]
    spec, shape = PartitionSpec(along, *static.spec), (size, *static.shape)
    mapped = _Map(forward_all, backward_all, split, shape, static.dtype, spec)
    return _linear.bind(*match_varying(*batched), static=mapped), 0


_linear: Primitive = new_primitive(
    "linear_map", _run, _abstract, batch=_batch, jvp=_jvp, transpose=_transpose
)
