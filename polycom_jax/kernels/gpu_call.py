"""Pallas-Triton kernels for NVIDIA GPUs: where they can go, and how any card gets them.

While JAX lowers such a kernel it asks for a card by name, and uses the answer for 8-bit floats
alone. Without a mesh it knows none where a program is compiled ahead, and gets one here. It also
warns each user that it will drop this route, which is for this file to deal with.
"""

import contextlib
import importlib
import re
import warnings
from collections.abc import Callable, Generator, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax._errors import InputError
from polycom_jax.kernels.implementations import backend, compute_capability
from polycom_jax.kernels.primitives import Primitive, lower_fun, new_primitive
from polycom_jax.kernels.restrictions import unsupported_by_mesh

Call = Callable[..., Sequence[Array]]
"""call(*arrays) -> arrays."""

OLDEST = 8.0
"""Compute capability from which XLA's Triton multiplies by tensor cores: Ampere's."""

KNOWN = re.compile(r"\b(A10|A30|A100|H100|H200|GH200|B200|GB200|L4|L40|RTX 4090)\b")
"""Kinds of cards of which JAX 0.12 takes a mesh."""

_A_CARD = jax.sharding.AbstractDevice("NVIDIA A100", 108, "cuda")


def gpu_call(kernel: Call, *args: Array, implementation: str) -> Sequence[Array]:
    """kernel(*args), with Pallas-Triton calls in it; its derivatives are the caller's to give.

    Compiled for anything but an NVIDIA GPU it raises `InputError`, which names the implementation.
    """
    return _gpu_call.bind(*args, kernel=kernel, implementation=implementation)


def unsupported_on_gpu(x: Array) -> str | None:
    """Why no Pallas-Triton kernel can take x on the GPU that is compiled for, or None."""
    if backend() == "gpu" and (reason := unsupported_card()) is not None:
        return reason
    if not _has_triton():
        return "this version of JAX has no Pallas-Triton"
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"its kernels take bfloat16, float16 and float32, not {x.dtype}"
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.platform != "cpu" and not KNOWN.search(device.device_kind):
        return f"JAX's Pallas-Triton takes no mesh of {device.device_kind}"
    return unsupported_by_mesh()


def unsupported_card() -> str | None:
    """Why the GPU that programs are traced for runs no Triton kernel, or None."""
    capability = compute_capability()
    if capability is None:
        return "its kernels run on NVIDIA's GPUs, and this device tells no compute capability"
    if capability < OLDEST:
        return (
            f"its kernels need compute capability {OLDEST} or more, and this GPU has {capability}"
        )
    return None if _has_triton() else "this version of JAX has no Pallas-Triton"


@contextlib.contextmanager
def lowering(context: Any, mesh: jax.sharding.AbstractMesh, implementation: str) -> Generator[None]:
    """While it lasts, JAX lowers Pallas-Triton calls as if for a card that it knows, on `mesh`.

    Raises:
        InputError: the program is compiled for anything but an NVIDIA GPU.
    """
    platforms = context.platforms or context.module_context.platforms
    if set(platforms) != {"cuda"}:
        raise InputError(
            f"implementation={implementation!r} cannot be compiled for {', '.join(platforms)}: its"
            " kernels run on NVIDIA GPUs; implementation=None takes one that runs here."
        )
    named = mesh.update(abstract_device=mesh.abstract_device or _A_CARD)
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(named):
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        yield


@cache
def _has_triton() -> bool:
    try:
        importlib.import_module("polycom_jax.kernels.triton")
    except (ImportError, AttributeError):
        return False
    return True


def _run(*args: Array, kernel: Call, implementation: str) -> list[Array]:
    del implementation
    return list(kernel(*args))


def _abstract(*args: Any, kernel: Call, implementation: str) -> Sequence[Any]:
    del implementation
    return jax.make_jaxpr(kernel)(*args).out_avals


@partial(jax.jit, static_argnames=("kernel", "implementation"))
def _impl(*args: Array, kernel: Call, implementation: str) -> Sequence[Array]:
    return gpu_call(kernel, *args, implementation=implementation)


def _batch(
    args: Sequence[Array], axes: Sequence[Any], *, kernel: Call, implementation: str
) -> tuple[Sequence[Array], list[int]]:
    out = gpu_call(jax.vmap(kernel, tuple(axes)), *args, implementation=implementation)
    return out, [0] * len(out)


def _lower(context: Any, *args: Any, kernel: Call, implementation: str) -> Any:
    with lowering(context, jax.sharding.get_abstract_mesh(), implementation):
        lower = lower_fun(_run, multiple_results=True)
        return lower(context, *args, kernel=kernel, implementation=implementation)


_gpu_call: Primitive = new_primitive(
    "gpu_call", _impl, _abstract, batch=_batch, lower=_lower, multiple_results=True
)
