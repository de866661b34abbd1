"""New primitives of JAX, and the only use here of its interpreters, which no version promises.

`jax.custom_jvp` and `jax.custom_vjp` make neither a linear map with a transpose of its own nor a
call that stays whole; tests/test_private_jax.py says what a new version of JAX has changed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
from jax.interpreters import ad, batching, mlir

Primitive = jax.extend.core.Primitive
Zero = ad.Zero
instantiate_zeros = ad.instantiate_zeros
is_undefined_primal = ad.is_undefined_primal
lower_fun = mlir.lower_fun


def lower_function(f: Callable[..., Any], context: Any, *args: Any) -> Any:
    """MLIR of f(*args), which returns a sequence, inside the lowering rule of a primitive.

    `f` is traced on arrays that no mesh is said to split: each is what one device has.
    """
    avals = [jax.typeof(jax.ShapeDtypeStruct(a.shape, a.dtype)) for a in context.avals_in]
    return mlir.lower_fun(f)(context.replace(avals_in=avals), *args)


def new_primitive(
    name: str,
    run: Callable[..., Any],
    abstract: Callable[..., Any],
    *,
    batch: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
    transpose: Callable[..., Any] | None = None,
    lower: Callable[..., Any] | None = None,
    multiple_results: bool = False,
) -> Primitive:
    """A primitive with these rules; the arguments of each are those that JAX's interpreters give.

    `lower` is a rule for MLIR; None: the program of `run`. With a transpose and no `jvp`, the
    primitive is linear in its one operand.
    """
    primitive = Primitive(name)
    primitive.multiple_results = multiple_results
    primitive.def_impl(run)
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    if jvp is not None:
        ad.primitive_jvps[primitive] = jvp
    if transpose is not None and jvp is None:
        ad.deflinear2(primitive, transpose)
    elif transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    program = mlir.lower_fun(run, multiple_results=multiple_results)
    mlir.register_lowering(primitive, lower or program)
    return primitive
