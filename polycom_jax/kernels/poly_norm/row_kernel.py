"""Kernels on rows for NVIDIA GPUs (Pallas, lowered by Triton): calls that JAX can map and split."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array

from polycom_jax.kernels.gpu_call import lowering, unsupported_card
from polycom_jax.kernels.implementations import backend
from polycom_jax.kernels.primitives import Primitive, lower_function, new_primitive
from polycom_jax.kernels.restrictions import unsupported_by_mesh
from polycom_jax.kernels.sharded import features_are_unsharded, match_varying

HIGHEST_ORDER = 8
"""Of the polynomials whose sums, one a power, fit the registers."""


class RowKernel(Protocol):
    """A kernel on groups of rows; hashable, as it is static.

    Attributes:
        interpret: whether it runs as plain XLA operations on any backend, for tests.
    """

    @property
    def interpret(self) -> bool: ...  # noqa: D102

    def shapes(self, *arrays: Any) -> Sequence[jax.ShapeDtypeStruct]:
        """Of the results."""
        ...

    def __call__(self, *arrays: Array) -> Sequence[Array]:
        """The results; every array, and every result, has the groups as its first axis."""
        ...


def call_kernel(kernel: RowKernel, *arrays: Array) -> list[Array]:
    """kernel(*arrays), under `jax.vmap` too: what is mapped over are more groups.

    Raises:
        InputError: it is compiled for anything but an NVIDIA GPU, unless it is interpreted.
    """
    return _kernel.bind(*match_varying(*arrays), kernel=kernel)


def unsupported_on_gpu(x: Array, *others: Array, **_static: Any) -> str | None:
    """Why kernels cannot take rows x, with the coefficients last, on the GPU that programs are
    traced for, or None.
    """
    order = others[-1].size - 1
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"its kernels take bfloat16 and float32, not {x.dtype}"
    if x.size == 0:
        return "there are no rows"
    if order > HIGHEST_ORDER:
        return f"its kernels take polynomials up to order {HIGHEST_ORDER}, not {order}"
    if backend() != "gpu":
        return f"its kernels run on NVIDIA's GPUs, and programs are traced for {backend()}"
    return unsupported_card() or unsupported_by_mesh() or _may_be_split()


def _may_be_split() -> str | None:
    if features_are_unsharded():
        return None
    return (
        "there are several devices, and nothing says that each holds whole rows (inside"
        " jax.shard_map it is known; elsewhere kernels.sharded.unsharded_features says so)"
    )


def _run(*arrays: Array, kernel: RowKernel) -> list[Array]:
    return jax.jit(call_kernel, static_argnums=0)(kernel, *arrays)


def _abstract(*arrays: Any, kernel: RowKernel) -> list[Any]:
    like = arrays[-1]

    def result(shape: jax.ShapeDtypeStruct) -> Any:
        whole = like.sharding.update(spec=PartitionSpec(*[None] * len(shape.shape)))
        return like.update(shape=shape.shape, dtype=shape.dtype, sharding=whole, weak_type=False)

    return [result(shape) for shape in kernel.shapes(*arrays)]


def _batch(args: Sequence[Array], axes: Sequence[Any], *, kernel: RowKernel) -> tuple[Any, Any]:
    size = next(a.shape[d] for a, d in zip(args, axes, strict=True) if d is not None)

    def grouped(array: Array, axis: int | None) -> Array:
        mapped = (
            jnp.broadcast_to(array, (size, *array.shape))
            if axis is None
            else jnp.moveaxis(array, axis, 0)
        )
        return mapped.reshape(-1, *mapped.shape[2:])

    out = call_kernel(kernel, *(grouped(a, d) for a, d in zip(args, axes, strict=True)))
    return [a.reshape(size, -1, *a.shape[1:]) for a in out], [0] * len(out)


def _lower(context: Any, *args: Any, kernel: RowKernel) -> Any:
    if kernel.interpret:
        return lower_function(kernel, context, *args)
    with lowering(context, AbstractMesh((), ()), "pallas_gpu"):
        return lower_function(kernel, context, *args)


_kernel: Primitive = new_primitive(
    "gpu_kernel", _run, _abstract, batch=_batch, lower=_lower, multiple_results=True
)
