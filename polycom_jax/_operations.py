"""What a function does to a hidden array, read off its traced program."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from polycom_jax._errors import InputError

FREE = frozenset(
    {"broadcast_in_dim", "reshape", "convert_element_type", "slice", "squeeze", "split", "unstack"}
    | {"stop_gradient", "bitcast_convert_type", "copy"}
)
"""What counts as no operation on the hidden array: moving, casting and wrapping."""

MOVES = frozenset({"concatenate", "dynamic_slice", "gather", "pad", "rev", "stack", "transpose"})
"""What counts once, however large an array it makes."""

ELEMENTWISE = frozenset(
    {"abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt"}
    | {"ceil", "clamp", "copy", "copy_p", "convert_element_type", "cos", "cosh", "digamma", "div"}
    | {"eq", "erf", "erfc", "erf_inv", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"}
    | {"is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne"}
    | {"neg", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin"}
    | {"sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor", "add_any"}
    | {"bessel_i0e", "bessel_i1e", "igamma", "igammac", "polygamma", "zeta"}
    | {"reduce_precision", "polynomial"}
)
"""Primitives whose result at an element depends on that element alone."""

REVERSE_ONLY = frozenset({"custom_vjp_call", "custom_vjp_call_jaxpr", "pallas_call"})
"""Sub-programs that have no forward derivative."""


COUNTED_ROWS = 211
"""Of the arrays that operations are counted on: a prime, that no learned array is as large."""


def traced(f: Callable[..., Any], *arguments: Any) -> Any:
    """The program of f, nothing computed."""
    return jax.make_jaxpr(f)(*arguments).jaxpr


def counted(name: str, f: Callable[..., Any], arguments: Sequence[Any], size: int) -> int:
    """How many operations f does on an array of `size` elements; `name` is for what is raised."""
    try:
        return len(operations(traced(f, *arguments), size))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def operations(jaxpr: Any, size: int) -> list[str]:
    """The primitives, sub-programs included, that touch an array of `size` elements.

    One of an array k times as large, as of k functions of each element, counts k times. A scan
    counts as often as it runs, or once where it runs along the array; of branches the larger one
    counts.

    Raises:
        InputError: a loop over the array ends when the program finds that it may.
    """
    found: list[str] = []
    for eqn in jaxpr.eqns:
        inner = inner_programs(eqn)
        several = _SEVERAL.get(eqn.primitive.name, _all_once)
        found += several(eqn, inner, size)
        name = eqn.primitive.name
        if (not inner or name == "reduce") and name not in FREE:
            found += [name] * _operations_an_element(eqn, size)
    return found


def _all_once(eqn: Any, inner: list[Any], size: int) -> list[str]:
    del eqn
    return [name for program in inner for name in operations(program, size)]


def _the_larger(eqn: Any, inner: list[Any], size: int) -> list[str]:
    del eqn
    return max((operations(branch, size) for branch in inner), key=len)


def _as_often_as_it_runs(eqn: Any, inner: list[Any], size: int) -> list[str]:
    length, (consts, carried) = eqn.params["length"], scan_parts(eqn)
    slices = (*eqn.invars[consts + carried :], *eqn.outvars[carried:])
    found = operations(inner[0], size) * length
    if length > 1 and any(v.aval.size == size for v in slices):
        found += operations(inner[0], size // length)
    return found


def _never_known(eqn: Any, inner: list[Any], size: int) -> list[str]:
    del eqn
    if any(operations(program, size) for program in inner):
        raise InputError(
            "operations cannot be counted: a while loop over the hidden array runs as often as its"
            " program finds; state flops=, the forward operations on each element."
        )
    return []


_SEVERAL: Mapping[str, Callable[[Any, list[Any], int], list[str]]] = {
    "cond": _the_larger,
    "scan": _as_often_as_it_runs,
    "while": _never_known,
}
"""How the operations of sub-programs add up, where it is not each once."""


def _operations_an_element(eqn: Any, size: int) -> int:
    """A reduction counts one for each array that it reduces; a matrix product two for each pair of
    elements that it multiplies and adds, a polynomial two for each step of Horner's scheme."""
    times = max(_times(v, size) for v in (*eqn.invars, *eqn.outvars))
    if not times or eqn.primitive.name in MOVES:
        return min(times, 1)
    if eqn.primitive.name == "reduce":
        return len(eqn.outvars) * times
    if eqn.primitive.name == "polynomial":
        return 2 * (len(eqn.invars) - 2) * times
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        products = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return math.ceil(2 * products * eqn.outvars[0].aval.size / size)
    return times


def _times(v: Any, size: int) -> int:
    """How many arrays of that size make up a value; 0 where it is none of them."""
    return v.aval.size // size if size and v.aval.size % size == 0 else 0


def inner_programs(eqn: Any) -> list[Any]:
    """The sub-programs of an operation, each branch of several."""
    parts = [
        as_program(part)
        for value in eqn.params.values()
        for part in (value if isinstance(value, tuple | list) else (value,))
    ]
    return [part for part in parts if hasattr(part, "eqns")]


def as_program(part: Any) -> Any:
    """The program itself of one that is kept with its constants."""
    return getattr(part, "jaxpr", part)


def scan_parts(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan all its steps read, and how many they carry on.

    Slices have one axis less inside, in every release of JAX.
    """
    (body,) = inner_programs(eqn)

    def of_slices(outer: Any, inner: Any) -> int:
        return sum(a.aval.ndim > b.aval.ndim for a, b in zip(outer, inner, strict=True))

    carried = len(eqn.outvars) - of_slices(eqn.outvars, body.outvars)
    return len(eqn.invars) - of_slices(eqn.invars, body.invars) - carried, carried
