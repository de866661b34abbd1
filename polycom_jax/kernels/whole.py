"""A call that stays whole while JAX derives a backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Call = Callable[..., Sequence[Array]]
"""call(*arrays) -> arrays."""


def whole(f: Call, *args: Array) -> Sequence[Array]:
    """f(*args), which the rule of a `jax.custom_jvp` may call where it loops.

    JAX splits such a rule into what is known in the forward pass and what is linear, loop by loop,
    and on that occasion moves what does not change out of a loop's body: masks and constants, each
    as large as the body's own arrays, which then lie in memory for the whole loop. A whole call is
    known as it is. It can be differentiated, batched and compiled as `f` itself.
    """
    return _whole.bind(*args, f=f)


_whole = jax.extend.core.Primitive("whole")
_whole.multiple_results = True


def _run(*args: Array, f: Call) -> list[Array]:
    return list(f(*args))


def _abstract(*args: Any, f: Call) -> Sequence[Any]:
    return jax.make_jaxpr(f)(*args).out_avals


def _jvp(args: Sequence[Array], tangents: Sequence[Any], *, f: Call) -> Any:
    along = tuple(ad.instantiate_zeros(t) for t in tangents)
    return jax.jvp(lambda *args: _run(*args, f=f), tuple(args), along)


def _batch(args: Sequence[Array], axes: Sequence[Any], *, f: Call) -> Any:
    out = whole(jax.vmap(f, tuple(axes)), *args)
    return out, [0] * len(out)


_whole.def_impl(_run)
_whole.def_abstract_eval(_abstract)
ad.primitive_jvps[_whole] = _jvp
batching.primitive_batchers[_whole] = _batch
mlir.register_lowering(_whole, mlir.lower_fun(_run, multiple_results=True))
