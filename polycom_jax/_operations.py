"""What a function does to a hidden array, read off its traced program."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

FREE = frozenset(
    {"broadcast_in_dim", "reshape", "convert_element_type", "slice", "squeeze", "split", "unstack"}
    | {"stop_gradient", "bitcast_convert_type", "copy"}
)
"""What counts as no operation on the hidden array: moving, casting and wrapping."""

ELEMENTWISE = frozenset(
    {"abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt"}
    | {"ceil", "clamp", "copy", "copy_p", "convert_element_type", "cos", "cosh", "digamma", "div"}
    | {"eq", "erf", "erfc", "erf_inv", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"}
    | {"is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne"}
    | {"neg", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin"}
    | {"sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor"}
)
"""Primitives whose result at an element depends on that element alone."""

REVERSE_ONLY = frozenset({"custom_vjp_call", "custom_vjp_call_jaxpr", "pallas_call"})
"""Sub-programs that have no forward derivative."""


def traced(f: Callable[..., Any], *arguments: Any) -> Any:
    """The program of f, nothing computed."""
    return jax.make_jaxpr(f)(*arguments).jaxpr


def operations(jaxpr: Any, size: int) -> list[str]:
    """The primitives, sub-programs included, that touch an array of `size` elements."""
    found: list[str] = []
    for eqn in jaxpr.eqns:
        inner = _inner(eqn)
        for program in inner:
            found += operations(program, size)
        touched = any(v.aval.size == size for v in (*eqn.invars, *eqn.outvars))
        name = eqn.primitive.name
        if touched and (not inner or name == "reduce") and name not in FREE:
            found += [name] * _operations_an_element(eqn)
    return found


def _operations_an_element(eqn: Any) -> int:
    """A reduction counts one for each array that it reduces; a matrix product two for each pair of
    elements that it multiplies and adds."""
    if eqn.primitive.name == "reduce":
        return len(eqn.outvars)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 1


def is_elementwise(jaxpr: Any, shape: Sequence[int]) -> bool:
    """Whether each element of the result surely depends on the same element of the inputs alone.

    It is false, too, where an operation on arrays of that shape is not known to be so.
    """
    wanted = tuple(shape)
    reached = {v for v in jaxpr.invars if v.aval.shape == wanted}
    return _stays(jaxpr, reached, wanted) and all(
        v.aval.shape == wanted for v in jaxpr.outvars if not _is_constant(v)
    )


def _stays(jaxpr: Any, reached: set[Any], shape: tuple[int, ...]) -> bool:
    """Whether what depends on the inputs (`reached`, which grows) keeps their elements apart."""
    for eqn in jaxpr.eqns:
        places = [i for i, v in enumerate(eqn.invars) if not _is_constant(v) and v in reached]
        if not places:
            continue
        inner = _inner(eqn)
        if eqn.primitive.name in REVERSE_ONLY or len(inner) > 1:
            return False
        if inner:
            program = inner[0]
            if len(program.invars) != len(eqn.invars):
                return False
            if not _stays(program, {program.invars[i] for i in places}, shape):
                return False
        elif eqn.primitive.name not in ELEMENTWISE:
            return False
        if any(v.aval.shape != shape for v in eqn.outvars):
            return False
        reached |= set(eqn.outvars)
    return True


def _is_constant(v: Any) -> bool:
    """Whether it is a number in the program itself, which has its value and no hash."""
    return hasattr(v, "val")


def _inner(eqn: Any) -> list[Any]:
    parts = [getattr(p, "jaxpr", p) for p in eqn.params.values()]
    return [part for part in parts if hasattr(part, "eqns")]
