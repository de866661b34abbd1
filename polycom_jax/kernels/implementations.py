"""Which version of an operation runs: the one named, or the best of those the backend has."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
from jaxtyping import Array

from polycom_jax._errors import InputError, unknown

Implementation = Literal["reference", "xla", "cpu", "gpu", "tpu", "pallas_gpu", "pallas_tpu"]
"""`reference`: the plain definition, differentiated by JAX. `xla`: the same arithmetic with a
derivative rule of its own that saves only the inputs. `cpu`, `gpu` and `tpu`: the same in fewer
passes over memory, written for XLA's backends of these names. These five run anywhere, under all of
JAX's transformations. `pallas_gpu`: kernels for NVIDIA's GPUs, for bfloat16 and float32; what they
do not compute, as derivatives in forward mode, is computed as in `xla`. `pallas_tpu`: TPU kernels,
for bfloat16 and float32; first derivatives in reverse mode only."""

IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

AttentionImplementation = Literal["xla", "blocks", "splash", "cudnn"]
"""What each is stands in `kernels.attention.attention`."""

ATTENTION_IMPLEMENTATIONS: tuple[str, ...] = get_args(AttentionImplementation)

GroupedImplementation = Literal["xla", "loop", "megablox", "triton"]
"""What each is stands in `kernels.grouped_matmul.grouped_matmul`."""

GROUPED_IMPLEMENTATIONS: tuple[str, ...] = get_args(GroupedImplementation)

FeedForwardImplementation = Literal["reference", "xla", "gpu", "tpu"]
"""What each is stands in `kernels.feed_forward.feed_forward`."""

_Name = Implementation | AttentionImplementation | GroupedImplementation


@dataclass(frozen=True)
class ShapeRule:
    """A preference for some shapes only.

    Attributes:
        implementation: what is preferred.
        shapes: where the shape of the first array satisfies this.
    """

    implementation: _Name
    shapes: Callable[[tuple[int, ...]], bool]


Preference = _Name | ShapeRule

# Best first; an operation without such a version, or whose version cannot take the arguments, goes
# to the next. `xla` takes everything, so it ends each list and serves other backends. The CPU's
# choices are measured; the TPU's are its compiler's predictions for whole steps, where XLA fuses an
# activation into the products around it, which a kernel prevents; the GPU's are counted in passes
# over memory of programs compiled for it, and not measured. All figures stand in
# experiments/results/speed/README.md.
PREFERENCE: Mapping[str, tuple[Preference, ...]] = {
    "cpu": (ShapeRule("blocks", lambda shape: shape[1] >= 512), "cpu", "loop", "xla"),
    "gpu": ("cudnn", "pallas_gpu", "triton", "gpu", "loop", "xla"),
    "tpu": ("splash", "tpu", "megablox", "xla"),
}


class _Target(NamedTuple):
    platform: str
    compute_capability: str | None


_target: ContextVar[_Target | None] = ContextVar("target", default=None)


def backend() -> str:
    """What programs are traced for: JAX's default backend, or that of `compiling_for`."""
    target = _target.get()
    return target.platform if target is not None else jax.default_backend()


def is_ahead() -> bool:
    """Whether programs are traced for what need not be here, under `compiling_for`."""
    return _target.get() is not None


def compute_capability() -> float | None:
    """Of the GPU that programs are traced for, 9.0 for an H100; None: it is none of NVIDIA's.

    Under `compiling_for` it is what that was given; without, JAX's first device knows it.
    """
    target = _target.get()
    if target is not None:
        text = target.compute_capability or ""
    else:
        text = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(text) if text[:1].isdigit() else None


@contextlib.contextmanager
def compiling_for(platform: str, compute_capability: str | None = None) -> Generator[None]:
    """While it lasts, choices are made for `platform`, which need not be here: "tpu", "gpu".

    They are made when a function is traced, and `jax.jit` keeps what it traced: inside, give it
    functions that it has not seen outside.

    Args:
        platform: as JAX names it.
        compute_capability: of an NVIDIA GPU, "9.0". Without it, versions that need to know it are
            not chosen.
    """
    token = _target.set(_Target(platform, compute_capability))
    try:
        yield
    finally:
        _target.reset(token)


def _always(*_arrays: Any, **_static: Any) -> None:
    """The version takes any arguments on any backend."""


@dataclass(frozen=True)
class Kernel:
    """One way to compute an operation.

    Attributes:
        run: run(*arrays, **static) -> array.
        unsupported_reason: of the same arguments: why this version cannot take them (shape, dtype,
            mesh), in words, or None if it can.
    """

    run: Callable[..., Array]
    unsupported_reason: Callable[..., str | None] = _always


@dataclass(frozen=True)
class Operation:
    """An operation with its versions; calling it runs one of them.

    Attributes:
        name: as users know it, for messages.
        versions: by implementation name.
    """

    name: str
    versions: Mapping[str, Kernel]

    def __call__(self, *arrays: Any, implementation: str | None = None, **static: Any) -> Array:
        """Runs the named version, or the first of the backend's preference that can take the
        arguments.

        The backend is JAX's default one, or that of `compiling_for`. A named version that is
        compiled for a backend it cannot run on raises when it is lowered.

        Raises:
            InputError: an unknown name, or a named version that cannot run, with its reason.
        """
        if implementation is None:
            version = self._preferred(*arrays, **static)
        else:
            version = self._named(implementation, *arrays, **static)
        with jax.named_scope(self.name):
            return version.run(*arrays, **static)

    def _preferred(self, *arrays: Any, **static: Any) -> Kernel:
        for preferred in PREFERENCE.get(backend(), ("xla",)):
            conditional = isinstance(preferred, ShapeRule)
            version = self.versions.get(preferred.implementation if conditional else preferred)
            if version is None or (conditional and not preferred.shapes(arrays[0].shape)):
                continue
            if version.unsupported_reason(*arrays, **static) is None:
                return version
        raise LookupError(f"{self.name}: no version in PREFERENCE takes the arguments.")

    def _named(self, implementation: str, *arrays: Any, **static: Any) -> Kernel:
        if implementation not in self.versions:
            raise unknown(f"implementation of {self.name}", implementation, self.versions)
        version = self.versions[implementation]
        reason = version.unsupported_reason(*arrays, **static)
        if reason is not None:
            raise InputError(
                f"{self.name}: implementation={implementation!r} cannot run here: {reason};"
                " implementation=None takes one that can."
            )
        return version
