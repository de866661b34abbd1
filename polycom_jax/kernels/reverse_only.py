"""Kernels have a first derivative in reverse mode and no other: to want more is told in words."""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.extend.core
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from polycom_jax._errors import InputError


def reverse_only(operation: str, implementation: str, *arrays: Array) -> list[Array]:
    """The arrays, on their way into a kernel, at no cost.

    Forward mode through them, and a second derivative of any mode, raise `InputError` with the
    implementation that has them, "xla"; the kernel's own calls would raise what says neither.
    """
    what = (
        f"{operation}: implementation={implementation!r} has first derivatives in reverse mode"
        ' only; implementation="xla" has every order and mode.'
    )
    return [_enter.bind(x, what=what, derived=False) for x in arrays]


_enter = jax.extend.core.Primitive("reverse_only")
_along = jax.extend.core.Primitive("reverse_only_tangent")


def _refuse(*_args: Any, what: str, **_other: Any) -> NoReturn:
    raise InputError(what)


def _jvp(
    args: Sequence[Array], tangents: Sequence[Any], *, what: str, derived: bool
) -> tuple[Array, Array]:
    if derived:
        _refuse(what=what)
    # A tangent that nothing but its transpose is wanted of is never computed.
    return _enter.bind(args[0], what=what, derived=True), _along.bind(tangents[0], what=what)


def _transpose(cotangent: Any, _x: Any, *, what: str) -> list[Any]:
    return [_enter.bind(ad.instantiate_zeros(cotangent), what=what, derived=True)]


def _same(x: Any, **_params: Any) -> Any:
    return x


def _batch(primitive: Any, args: Any, dims: Any, **params: Any) -> tuple[Array, Any]:
    return primitive.bind(*args, **params), dims[0]


for _primitive in (_enter, _along):
    _primitive.def_abstract_eval(_same)
    batching.primitive_batchers[_primitive] = lambda *a, p=_primitive, **k: _batch(p, *a, **k)
_enter.def_impl(_same)
_along.def_impl(_refuse)
ad.primitive_jvps[_enter] = _jvp
ad.deflinear2(_along, _transpose)
mlir.register_lowering(_enter, lambda _context, x, **_params: [x])
mlir.register_lowering(_along, _refuse)
