"""Derivative rules that keep nothing but the arguments for the backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from polycom_jax.activations.inputs import in_work_dtype, work_dtype
from polycom_jax.kernels.keep import keep
from polycom_jax.kernels.linear import linear_map

Value = Callable[..., Array]
"""value(*arrays, **static) in the work dtype."""
Tangent = Callable[..., Array]
"""tangent(primals, tangents, **static) in the work dtype: what `value` changes by, linearly. With a
`Row`, it takes `known`, too: what that gave."""
Row = Callable[..., list[Array]]
"""row(primals, **static) in the work dtype: numbers of each row that value and tangent need."""
Gradient = Callable[..., Sequence[Array]]
"""gradient(primals, cotangent, **static) in the work dtype: the transpose of `tangent`."""


def recomputed(
    value: Value, tangent: Tangent, gradient: Gradient | None = None, row: Row | None = None
) -> Callable[..., Array]:
    """`value` with derivative `tangent`; both recompute what they need from the arguments.

    It is a `jax.custom_jvp`, so forward mode differentiates it directly, reverse mode transposes
    its tangent, and both can be differentiated again. The transpose is `gradient`, or JAX's own
    under `jax.checkpoint` with nothing saveable. Each argument enters, and is saved, in its own
    dtype; the result has the dtype of the first one. What `row` gives is saved too, and `tangent`
    gets it: a few numbers a row spare the backward pass a reading of the row.

    Returns:
        f(*arrays, **static), compiled also when called eagerly; `static` must be hashable.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def function(static: tuple[tuple[str, Any], ...], *arrays: Array) -> Array:
        return in_work_dtype(partial(value, **dict(static)), *arrays)

    @function.defjvp
    def rule(
        static: tuple[tuple[str, Any], ...],
        primals: tuple[Array, ...],
        tangents: tuple[Array, ...],
    ) -> tuple[Array, Array]:
        known = {}
        if row is not None:
            known = {"known": _kept(partial(row, **dict(static)), primals)}
            out = in_work_dtype(partial(value, **known, **dict(static)), *primals)
        else:
            out = function(static, *primals)
        along = _along(tangent, dict(static))
        if gradient is None:
            # Inside one program XLA may merge the recomputation with what is alive anyway: no
            # barrier.
            lean = jax.checkpoint(
                along, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False
            )
            return out, lean(primals, tangents, **known)
        return out, linear_map(along, _against(gradient, dict(static)), primals, tangents)

    @partial(jax.jit, static_argnums=0)
    def compiled(static: tuple[tuple[str, Any], ...], *arrays: Array) -> Array:
        return function(static, *arrays)

    def call(*arrays: Array, **static: Any) -> Array:
        return compiled(tuple(sorted(static.items())), *arrays)

    return call


def _kept(row: Row, primals: Sequence[Array]) -> list[Array]:
    """`row` of arrays in their own dtypes, under the name by which it is kept."""
    dtype = work_dtype(primals[0].dtype)
    return [keep("row", number) for number in row(tuple(p.astype(dtype) for p in primals))]


def _along(tangent: Tangent, static: dict[str, Any]) -> Callable[..., Array]:
    """`tangent` of arrays in their own dtypes."""

    def along(primals: Sequence[Array], tangents: Sequence[Array], **known: Any) -> Array:
        def split(*both: Array) -> Array:
            return tangent(both[: len(primals)], both[len(primals) :], **known, **static)

        return in_work_dtype(split, *primals, *tangents)

    return along


def _against(gradient: Gradient, static: dict[str, Any]) -> Callable[..., Sequence[Array]]:
    """`gradient` of arrays in their own dtypes; each comes back in that of its argument."""

    def against(primals: Sequence[Array], cotangent: Array) -> Sequence[Array]:
        dtype = work_dtype(primals[0].dtype)
        wide = tuple(p.astype(dtype) for p in primals)
        grads = gradient(wide, cotangent.astype(dtype), **static)
        return [g.astype(p.dtype) for g, p in zip(grads, primals, strict=True)]

    return against
