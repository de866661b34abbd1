"""A call that JAX does not look into while it derives a backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array

from polycom_jax.kernels.primitives import Primitive, instantiate_zeros, new_primitive

Call = Callable[..., Sequence[Array]]
"""call(*arrays) -> arrays."""


def opaque_call(f: Call, *args: Array) -> Sequence[Array]:
    """f(*args), which the rule of a `jax.custom_jvp` may call where it loops.

    JAX splits such a rule, loop by loop, into what the forward pass can compute and what is linear,
    and moves what does not change out of a loop's body: masks and constants, each as large as the
    body's own arrays, which then lie in memory for the whole loop. It does not split this call,
    which can be differentiated, batched and compiled as `f` itself.
    """
    return _opaque_call.bind(*args, f=f)


def _run(*args: Array, f: Call) -> list[Array]:
    return list(f(*args))


def _abstract(*args: Any, f: Call) -> Sequence[Any]:
    return jax.make_jaxpr(f)(*args).out_avals


def _jvp(args: Sequence[Array], tangents: Sequence[Any], *, f: Call) -> Any:
    along = tuple(instantiate_zeros(t) for t in tangents)
    return jax.jvp(lambda *args: _run(*args, f=f), tuple(args), along)


def _batch(args: Sequence[Array], axes: Sequence[Any], *, f: Call) -> Any:
    out = opaque_call(jax.vmap(f, tuple(axes)), *args)
    return out, [0] * len(out)


_opaque_call: Primitive = new_primitive(
    "opaque_call", _run, _abstract, batch=_batch, jvp=_jvp, multiple_results=True
)
