"""Where a kernel cannot go, and an error that says so: other backends, other derivatives.

A program may be traced on a CPU host and compiled for a TPU slice that is not there, so neither the
default backend nor the devices present say what a named kernel will run on: that is known when the
program is lowered.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax._errors import InputError
from polycom_jax.kernels.primitives import Primitive, instantiate_zeros, new_primitive


def only_on_tpu(x: Array, implementation: str = "pallas_tpu") -> Array:
    """x; compiled for anything but a TPU it raises `InputError`, which names the implementation.

    It costs nothing.
    """
    return _only_on_tpu.bind(x, implementation=implementation)


def unsupported_on_tpu(x: Array, *_others: Array, **_static: Any) -> str | None:
    """Why a Pallas kernel cannot take x on whatever TPU it is compiled for, or None.

    Mosaic refuses to load float16 vectors, and has no float64.
    """
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"its kernels take bfloat16 and float32, not {x.dtype}"
    return split_by_a_mesh()


def split_by_a_mesh() -> str | None:
    """Why no kernel can run where the mesh of `jax.set_mesh` splits the program, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    split = [n for n in mesh.axis_names if n not in mesh.manual_axes and mesh.shape[n] > 1]
    if split:
        return (
            f"the mesh splits the program over {', '.join(split)}, and a kernel is not partitioned"
            " automatically (call it inside jax.shard_map, as kernels.sharded.over_mesh does)"
        )
    return None


def reverse_only(operation: str, implementation: str, *arrays: Array) -> list[Array]:
    """The arrays, on their way into a kernel, at no cost.

    Forward mode through them, and a second derivative of any mode, raise `InputError` with the
    implementation that has them, "xla"; the kernel's own calls would raise what says neither.
    """
    message = (
        f"{operation}: implementation={implementation!r} has first derivatives in reverse mode"
        ' only; implementation="xla" has every order and mode.'
    )
    return [_reverse_only.bind(x, message=message, differentiated=False) for x in arrays]


def _same(x: Any, **_params: Any) -> Any:
    return x


def _batch_as_is(primitive: str, args: Any, axes: Any, **params: Any) -> tuple[Array, Any]:
    return globals()[primitive].bind(*args, **params), axes[0]


def _lower_on_tpu(context: Any, x: Any, *, implementation: str) -> Any:
    platforms = context.platforms or context.module_context.platforms
    if set(platforms) != {"tpu"}:
        raise InputError(
            f"implementation={implementation!r} cannot be compiled for {', '.join(platforms)}: its"
            " kernels run on TPUs; implementation=None takes one that runs here."
        )
    return [x]


def _run_on_tpu(x: Array, *, implementation: str) -> Array:
    return jax.jit(only_on_tpu, static_argnums=1)(x, implementation)


_only_on_tpu = new_primitive(
    "only_on_tpu",
    _run_on_tpu,
    _same,
    batch=partial(_batch_as_is, "_only_on_tpu"),
    lower=_lower_on_tpu,
)


def _refuse(*_args: Any, message: str, **_other: Any) -> NoReturn:
    raise InputError(message)


def _jvp(
    args: Sequence[Array], tangents: Sequence[Any], *, message: str, differentiated: bool
) -> tuple[Array, Array]:
    if differentiated:
        _refuse(message=message)
    # Reverse mode transposes the tangent without computing it; forward mode computes it.
    primal = _reverse_only.bind(args[0], message=message, differentiated=True)
    return primal, _tangent.bind(tangents[0], message=message)


def _transpose(cotangent: Any, _x: Any, *, message: str) -> list[Any]:
    x = instantiate_zeros(cotangent)
    return [_reverse_only.bind(x, message=message, differentiated=True)]


_reverse_only: Primitive = new_primitive(
    "reverse_only",
    _same,
    _same,
    batch=partial(_batch_as_is, "_reverse_only"),
    jvp=_jvp,
    lower=lambda _context, x, **_params: [x],
)
_tangent: Primitive = new_primitive(
    "reverse_only_tangent",
    _refuse,
    _same,
    batch=partial(_batch_as_is, "_tangent"),
    transpose=_transpose,
    lower=_refuse,
)
