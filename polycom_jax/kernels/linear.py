"""Linear maps with a transpose of their own, under all of JAX's transformations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from polycom_jax.kernels.sharded import alike

Forward = Callable[[Sequence[Array], Sequence[Array]], Array]
"""forward(fixed, moved): linear in `moved`, with the shape and dtype of `moved[0]`."""
Backward = Callable[[Sequence[Array], Array], Sequence[Array]]
"""backward(fixed, cotangent): a cotangent for each of `moved`."""


def linear_map(
    forward: Forward, backward: Backward, fixed: Sequence[Array], moved: Sequence[Array]
) -> Array:
    """forward(fixed, moved), whose transpose is `backward`.

    JAX's own transpose of a fused forward is whatever its pieces transpose to, one reduction here,
    one there; a hand-written one can share passes over memory. Unlike `jax.custom_vjp` it leaves
    forward mode as it is, and unlike `jax.custom_derivatives.linear_call` it has a batching rule.
    Nothing but `fixed` is kept for the backward pass. Derivatives in `fixed` are JAX's, of
    `forward`.
    """
    args = alike(*fixed, *moved)
    return _linear.bind(*args, forward=forward, backward=backward, split=len(fixed))


_linear = jax.extend.core.Primitive("linear_map")


def _run(*args: Array, forward: Forward, backward: Backward, split: int) -> Array:
    del backward
    return forward(args[:split], args[split:])


def _abstract(*args: Any, forward: Forward, backward: Backward, split: int) -> Any:
    del forward, backward
    return args[split]


def _jvp(
    args: Sequence[Array],
    tangents: Sequence[Any],
    *,
    forward: Forward,
    backward: Backward,
    split: int,
) -> tuple[Array, Array]:
    fixed, moved = args[:split], args[split:]
    out = linear_map(forward, backward, fixed, moved)
    change = jnp.zeros_like(out)
    along_fixed, along_moved = tangents[:split], tangents[split:]
    if _any_nonzero(along_moved):
        change += linear_map(forward, backward, fixed, _instantiate(along_moved))
    if _any_nonzero(along_fixed):

        def at(*fixed: Array) -> Array:
            return forward(fixed, moved)

        change += jax.jvp(at, tuple(fixed), tuple(_instantiate(along_fixed)))[1]
    return out, change


def _any_nonzero(tangents: Sequence[Any]) -> bool:
    return any(not isinstance(t, ad.Zero) for t in tangents)


def _instantiate(tangents: Sequence[Any]) -> list[Array]:
    return [ad.instantiate_zeros(t) for t in tangents]


def _transpose(
    cotangent: Any, *args: Any, forward: Forward, backward: Backward, split: int
) -> list[Array | None]:
    del forward
    if isinstance(cotangent, ad.Zero):
        return [None] * len(args)
    grads = backward(args[:split], cotangent)
    wanted = [ad.is_undefined_primal(arg) for arg in args[split:]]
    return [None] * split + [g if want else None for g, want in zip(grads, wanted, strict=True)]


def _batch(
    args: Sequence[Array],
    axes: Sequence[Any],
    *,
    forward: Forward,
    backward: Backward,
    split: int,
) -> tuple[Array, int]:
    size = next(a.shape[d] for a, d in zip(args, axes, strict=True) if d is not None)
    # The result is as large as moved[0], and each of `moved` gets a cotangent as large as itself:
    # these are all batched, and transposing the broadcast then sums where that is due.
    batched, in_axes = [], []
    for i, (arg, axis) in enumerate(zip(args, axes, strict=True)):
        if axis is not None:
            arg = jnp.moveaxis(arg, axis, 0)
        elif i >= split:
            arg = jnp.broadcast_to(arg[None], (size, *arg.shape))
        batched.append(arg)
        in_axes.append(None if axis is None and i < split else 0)
    where = tuple(in_axes[:split])

    def forward_all(fixed: Sequence[Array], moved: Sequence[Array]) -> Array:
        return jax.vmap(forward, (where, 0))(tuple(fixed), tuple(moved))

    def backward_all(fixed: Sequence[Array], cotangent: Array) -> Sequence[Array]:
        return jax.vmap(backward, (where, 0))(tuple(fixed), cotangent)

    return linear_map(forward_all, backward_all, batched[:split], batched[split:]), 0


_linear.def_impl(_run)
_linear.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=False))
