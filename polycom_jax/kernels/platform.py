"""What a kernel is compiled for is known only when it is lowered: then a wrong backend is told.

A program may be traced on a CPU host and compiled for a TPU slice that is not there, so neither the
default backend nor the devices present say what a named kernel will run on.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

from polycom_jax._errors import InputError

_only_on_tpu = Primitive("only_on_tpu")


def only_on_tpu(x: Array, implementation: str = "pallas_tpu") -> Array:
    """x; compiled for anything but a TPU it raises `InputError`, which names the implementation.

    It costs nothing.
    """
    return _only_on_tpu.bind(x, implementation=implementation)


def why_not_on_tpu(x: Array, *_others: Array, **_static: Any) -> str | None:
    """Why a kernel cannot take x on whatever TPU it is compiled for, or None.

    Mosaic refuses to load float16 vectors (v5e and v6e, libtpu 0.0.51), and has no float64.
    """
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"its kernels take bfloat16 and float32, not {x.dtype}"
    mesh = jax.sharding.get_abstract_mesh()
    split = [n for n in mesh.axis_names if n not in mesh.manual_axes and mesh.shape[n] > 1]
    if split:
        return (
            f"the mesh splits the program over {', '.join(split)}, and a kernel is not partitioned"
            " automatically (call it inside jax.shard_map, as kernels.sharded.over_mesh does)"
        )
    return None


def _same(x: Any, *, implementation: str) -> Any:
    del implementation
    return x


def _lower(ctx: mlir.LoweringRuleContext, x: Any, *, implementation: str) -> Any:
    platforms = ctx.platforms or ctx.module_context.platforms
    if set(platforms) != {"tpu"}:
        raise InputError(
            f"implementation={implementation!r} cannot be compiled for {', '.join(platforms)}: its"
            " kernels run on TPUs; implementation=None takes one that runs here."
        )
    return [x]


def _batch(args: Any, dims: Any, *, implementation: str) -> tuple[Array, Any]:
    return only_on_tpu(args[0], implementation), dims[0]


_only_on_tpu.def_abstract_eval(_same)
_only_on_tpu.def_impl(jax.jit(_only_on_tpu.bind, static_argnames="implementation"))
mlir.register_lowering(_only_on_tpu, _lower)
batching.primitive_batchers[_only_on_tpu] = _batch
