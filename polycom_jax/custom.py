"""Rows made of one function: what it reads and what its derivative needs is seen in its program."""

import inspect
import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from polycom_jax._dependence import has_reverse_only, reads_of_results
from polycom_jax._errors import InputError, require
from polycom_jax._operations import traced
from polycom_jax._reads import Place, Reach, Reads, joined, of_axes
from polycom_jax.activations.inputs import check_floating, check_gate, recomputed
from polycom_jax.kernels.elementwise import elementwise
from polycom_jax.row import Declared, Parameter, Row

Function = Callable[..., Array]
"""f(x, **parameters), or f(gate, up, **parameters): plain JAX, of float32 arrays or wider."""

SHAPES = ((3, 5), (2, 3, 10))
"""What a function is traced with, the last axis times what groups ask for. No two axes of one are
as long, and no group of channels is one channel in both."""

TAKEN = ("axis_name", "function")
"""Names that a parameter may not have: the function is told the mesh axis under one, and modules
keep the function under the other."""


def elementwise_row(
    f: Function,
    params: Mapping[str, Declared] | None = None,
    *,
    gated: bool = False,
    listed: bool = False,
    prepared: Mapping[str, Callable[[Array], Array]] | None = None,
    **about: Any,
) -> Row:
    """The row of a function that is known to be element-wise; `about` are fields of `Row`.

    What is made of the options is one a layer; `listed` as in `kernels.elementwise`. `prepared`:
    parameter -> what `f` takes in its place, formed and differentiated once for all elements.
    """
    declared = dict(params or {})
    by_channel = tuple(isinstance(p, Parameter) and p.by_channel for p in declared.values())
    core = elementwise(_positional(f, declared, 1 + gated), 1 + gated, by_channel, listed)
    if prepared:
        core = partial(_with_prepared, core, [prepared.get(name) for name in declared])
    function = partial(_checked, core, 1 + gated)
    return Row(function, gated=gated, params=tuple(declared.items()), **about)


def row_of(
    f: Function, name: str, params: Mapping[str, Parameter], *, gated: bool, **about: Any
) -> Row:
    """The row of any function, traced to see what an element of its result reads.

    It is element-wise where that is the same element of the hidden array, and of parameters those
    of its own channel alone: only then is the gradient of a channel's number a sum over its own.

    Raises:
        InputError: it cannot be called so, returns something else than one array like its input,
            reads other rows than its own, or a parameter has a name that it cannot have.
    """
    for each in params:
        _check_name(each, name)
    takes_axis = "axis_name" in inspect.signature(f).parameters
    core = _positional(f, params, 1 + gated)
    apart = not takes_axis
    for shape in SHAPES:
        hidden = _abstract(params, shape)
        learned = [_as_read(each, hidden) for each in params.values()]
        arguments = [*[hidden] * (1 + gated), *learned]
        program = _program(core, name, arguments, hidden)
        _check_rows(program, name, hidden, 1 + gated)
        channels = [each.by_channel for each in params.values()]
        apart = apart and _is_elementwise(program, hidden, 1 + gated, channels)
    if apart:
        return elementwise_row(f, params, gated=gated, **about)
    return row_reading_row(f, params, gated=gated, takes_axis=takes_axis, **about)


def _check_name(parameter: str, name: str) -> None:
    require(
        isinstance(parameter, str)
        and parameter.isidentifier()
        and not keyword.iskeyword(parameter),
        f"activation {name!r}: a parameter is called {parameter!r}; the function is given it as a"
        " keyword argument, so it must be a name as Python has them, for instance beta.",
    )
    require(
        parameter not in TAKEN,
        f"activation {name!r}: a parameter may not be called {parameter!r}, which stands for"
        " something else here; take another name, for instance beta.",
    )


def _check_rows(program: Any, name: str, hidden: jax.ShapeDtypeStruct, inputs: int) -> None:
    """Raises `InputError` where the program mixes rows, or cuts, joins or turns their axes; where
    that cannot be seen, the contract of `polycom_jax.testing` tries it."""
    found = _hidden_reads(program, hidden, inputs)
    mixed = [axis for axis in range(len(hidden.shape) - 1) if found.get(axis) is Reach.MIXED]
    require(
        not mixed,
        f"activation {name!r} mixes rows: of float32{list(hidden.shape)} its result reads other"
        f" elements along axis {', '.join(map(str, mixed))}, where other tokens and examples lie,"
        " or cuts or joins that axis; let it work along the last axis alone, axis=-1.",
    )


def _is_elementwise(
    program: Any, hidden: jax.ShapeDtypeStruct, inputs: int, by_channel: Sequence[bool]
) -> bool:
    last = len(hidden.shape) - 1
    own: Reads = of_axes(hidden.shape, range(last, last + 1))
    learned = [
        {last: Place(v.aval.ndim - 1, 1, hidden.shape[-1])} if channels else {}
        for v, channels in zip(program.invars[inputs:], by_channel, strict=True)
    ]
    read_of_learned = joined(*reads_of_results(program, [*[{}] * inputs, *learned]))
    return (
        not has_reverse_only(program)
        and _hidden_reads(program, hidden, inputs).items()
        <= of_axes(hidden.shape, range(last + 1)).items()
        and read_of_learned.items() <= own.items()
    )


def _hidden_reads(program: Any, hidden: jax.ShapeDtypeStruct, inputs: int) -> Reads:
    every = of_axes(hidden.shape, range(len(hidden.shape)))
    rest = [{} for _ in program.invars[inputs:]]
    return joined(*reads_of_results(program, [*[every] * inputs, *rest]))


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


def _with_prepared(
    core: Callable[..., Array], each: Sequence[Callable[[Array], Array] | None], *arrays: Array
) -> Array:
    inputs = len(arrays) - len(each)
    learned = [f(p) if f else p for f, p in zip(each, arrays[inputs:], strict=True)]
    return core(*arrays[:inputs], *learned)


def _recomputed(core: Callable[..., Array], x: Array, *others: Array, **keywords: Any) -> Array:
    return recomputed(partial(core, **keywords), x, *others)


def _checked(run: Callable[..., Array], inputs: int, *arrays: Any, **keywords: Any) -> Array:
    """Of arrays that are floating, and of a gate and an up that agree."""
    first = check_floating("gate" if inputs == 2 else "x", arrays[0])
    hidden = [first, *(check_gate(first, up) for up in arrays[1:inputs])]
    return run(*hidden, *arrays[inputs:], **keywords)


def _abstract(params: Mapping[str, Parameter], shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    *leading, width = shape
    width *= math.lcm(*(each.groups for each in params.values()), 1)
    return jax.ShapeDtypeStruct((*leading, width), jnp.float32)


def _as_read(parameter: Parameter, hidden: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    ones = [1] * (len(hidden.shape) - 1)
    channels = (*ones, hidden.shape[-1]) if parameter.by_channel else ()
    return jax.ShapeDtypeStruct((*parameter.shape, *channels), jnp.float32)


def _program(
    core: Callable[..., Array], name: str, arguments: Sequence[Any], hidden: jax.ShapeDtypeStruct
) -> Any:
    try:
        shaped = jax.eval_shape(core, *arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the function of a user raises
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
