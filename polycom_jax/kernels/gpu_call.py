"""Kernels on rows for NVIDIA GPUs (Pallas, lowered by Triton) as calls that JAX can map and split.

Triton's program is the same for every card, so it is lowered as if for one of them: a program for a
GPU that is not there can be lowered anywhere.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec
from jaxtyping import Array

from polycom_jax._errors import InputError
from polycom_jax.kernels.implementations import backend, compute_capability
from polycom_jax.kernels.primitives import Primitive, lower_function, new_primitive
from polycom_jax.kernels.restrictions import split_by_a_mesh
from polycom_jax.kernels.sharded import features_are_unsharded, match_varying

OLDEST = 8.0
"""The compute capability from which on XLA compiles Triton's programs."""

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
    return _wrong_card() or split_by_a_mesh() or _may_be_split()


def _wrong_card() -> str | None:
    if backend() != "gpu":
        return f"its kernels run on NVIDIA's GPUs, and programs are traced for {backend()}"
    capability = compute_capability()
    if capability is None:
        return "its kernels run on NVIDIA's GPUs, and this device tells no compute capability"
    if capability < OLDEST:
        return (
            f"its kernels need compute capability {OLDEST} or more, and this GPU has {capability}"
        )
    return None


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
    platforms = context.platforms or context.module_context.platforms
    if not kernel.interpret and set(platforms) != {"cuda"}:
        raise InputError(
            f"implementation='pallas_gpu' cannot be compiled for {', '.join(platforms)}: its"
            " kernels run on NVIDIA's GPUs; implementation=None takes one that runs here."
        )
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(_CARD):
        # JAX will drop this route; tests/test_private_jax.py says when it has.
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        return lower_function(kernel, context, *args)


_CARD = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100", 132, "cuda"))
_kernel: Primitive = new_primitive(
    "gpu_kernel", _run, _abstract, batch=_batch, lower=_lower, multiple_results=True
)
