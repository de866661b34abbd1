"""Derivative rules that keep nothing but the arguments for the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from polycom_jax.activations.inputs import in_work_dtype

Value = Callable[..., Array]
"""value(*arrays, **static) in the work dtype."""
Tangent = Callable[..., Array]
"""tangent(primals, tangents, **static) in the work dtype: what `value` changes by, linearly."""


def recomputed(value: Value, tangent: Tangent) -> Callable[..., Array]:
    """`value` with derivative `tangent`; both recompute what they need from the arguments.

    It is a `jax.custom_jvp` whose rule runs under `jax.checkpoint` with nothing saveable: forward
    mode differentiates it directly, reverse mode transposes it, and both can be differentiated
    again. Each argument enters, and is saved, in its own dtype; the result has the dtype of the
    first one.

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
        def split(*both: Array) -> Array:
            return tangent(both[: len(primals)], both[len(primals) :], **dict(static))

        # Inside one program XLA may merge the recomputation with what is alive anyway: no barrier.
        lean = jax.checkpoint(
            partial(in_work_dtype, split),
            policy=jax.checkpoint_policies.nothing_saveable,
            prevent_cse=False,
        )
        return function(static, *primals), lean(*primals, *tangents)

    @partial(jax.jit, static_argnums=0)
    def compiled(static: tuple[tuple[str, Any], ...], *arrays: Array) -> Array:
        return function(static, *arrays)

    def call(*arrays: Array, **static: Any) -> Array:
        return compiled(tuple(sorted(static.items())), *arrays)

    return call
