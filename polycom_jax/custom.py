"""Rows made of one function: what it reads and what its derivative needs is seen in its program."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from polycom_jax._errors import InputError, require
from polycom_jax._operations import is_elementwise, traced
from polycom_jax.activations.inputs import check_floating, check_gate, recomputed
from polycom_jax.kernels.elementwise import elementwise
from polycom_jax.row import Declared, Parameter, Row

Function = Callable[..., Array]
"""f(x, **parameters), or f(gate, up, **parameters): plain JAX, of float32 arrays or wider."""

ROWS = 3
"""Rows of the array that a function is traced with; its width is another number."""


def elementwise_row(
    f: Function,
    params: Mapping[str, Declared] | None = None,
    *,
    gated: bool = False,
    listed: bool = False,
    **about: Any,
) -> Row:
    """The row of a function that is known to be element-wise; `about` are fields of `Row`.

    What is made of the options is one a layer; `listed` as in `kernels.elementwise`.
    """
    declared = dict(params or {})
    by_channel = tuple(isinstance(p, Parameter) and p.by_channel for p in declared.values())
    core = elementwise(_positional(f, declared, 1 + gated), 1 + gated, by_channel, listed)
    function = partial(_checked, core, 1 + gated)
    return Row(function, gated=gated, params=tuple(declared.items()), **about)


def row_of(
    f: Function, name: str, params: Mapping[str, Parameter], *, gated: bool, **about: Any
) -> Row:
    """The row of any function, traced once to see whether it is element-wise.

    Raises:
        InputError: it cannot be called so, or returns something else than one array like its input.
    """
    takes_axis = "axis_name" in inspect.signature(f).parameters
    core = _positional(f, params, 1 + gated)
    hidden = _abstract(params)
    learned = [_as_read(each, hidden) for each in params.values()]
    arguments = [*[hidden] * (1 + gated), *learned]
    program = _program(core, name, arguments, hidden)
    if not takes_axis and is_elementwise(program, hidden.shape):
        return elementwise_row(f, params, gated=gated, **about)
    return row_reading_row(f, params, gated=gated, takes_axis=takes_axis, **about)


def row_reading_row(
    f: Function,
    params: Mapping[str, Parameter],
    *,
    gated: bool = False,
    takes_axis: bool = True,
    **about: Any,
) -> Row:
    """The row of a function that reads whole rows, and takes `axis_name` if `takes_axis`."""
    core = _positional(f, params, 1 + gated)
    run = jax.jit(partial(_recomputed, core), static_argnames=("axis_name",) if takes_axis else ())
    return Row(
        partial(_checked, run, 1 + gated),
        gated=gated,
        params=tuple(params.items()),
        over_rows=True,
        takes_axis=takes_axis,
        **about,
    )


def _positional(f: Function, params: Mapping[str, Any], inputs: int) -> Callable[..., Array]:
    names = tuple(params)

    def core(*arrays: Array, **keywords: Any) -> Array:
        learned = dict(zip(names, arrays[inputs:], strict=True))
        return f(*arrays[:inputs], **learned, **keywords)

    return core


def _recomputed(core: Callable[..., Array], x: Array, *others: Array, **keywords: Any) -> Array:
    return recomputed(partial(core, **keywords), x, *others)


def _checked(run: Callable[..., Array], inputs: int, *arrays: Any, **keywords: Any) -> Array:
    """Of arrays that are floating, and of a gate and an up that agree."""
    first = check_floating("gate" if inputs == 2 else "x", arrays[0])
    hidden = [first, *(check_gate(first, up) for up in arrays[1:inputs])]
    return run(*hidden, *arrays[inputs:], **keywords)


def _abstract(params: Mapping[str, Parameter]) -> jax.ShapeDtypeStruct:
    width = 5 * math.lcm(*(each.groups for each in params.values()), 1)
    return jax.ShapeDtypeStruct((ROWS, width), jnp.float32)


def _as_read(parameter: Parameter, hidden: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    channels = (1, hidden.shape[-1]) if parameter.by_channel else ()
    return jax.ShapeDtypeStruct((*parameter.shape, *channels), jnp.float32)


def _program(
    core: Callable[..., Array], name: str, arguments: Sequence[Any], hidden: jax.ShapeDtypeStruct
) -> Any:
    try:
        shaped = jax.eval_shape(core, *arguments)
    except InputError:
        raise
    except Exception as error:  # whatever the function of a user raises
        text = " ".join(str(error).split())[:300]
        raise InputError(
            f"activation {name!r} cannot be called with float32{list(hidden.shape)} and its"
            f" parameters: {type(error).__name__}: {text}"
        ) from error
    found = getattr(shaped, "shape", None), getattr(shaped, "dtype", None)
    require(
        found[0] == hidden.shape and found[1] == np.float32,
        f"activation {name!r} must return one array of its input's shape and dtype,"
        f" float32{list(hidden.shape)}; it returned {_shown(shaped)}.",
    )
    return traced(core, *arguments)


def _shown(shaped: Any) -> str:
    if isinstance(shaped, jax.ShapeDtypeStruct):
        return f"{shaped.dtype}{list(shaped.shape)}"
    return f"a {type(shaped).__name__}"
