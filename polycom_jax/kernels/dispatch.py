"""Which version of an operation runs: the one named, or the best of those the backend has."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
from jaxtyping import Array

from polycom_jax._errors import InputError, unknown

Implementation = Literal["reference", "xla", "cpu", "tpu", "pallas_tpu"]
"""`reference`: the plain definition, differentiated by JAX. `xla`: the same arithmetic with a
derivative rule of its own that saves only the inputs. `cpu` and `tpu`: the same in fewer passes
over memory, as XLA's backends of these names need it told. They run anywhere, and all of JAX's
transformations work on these four. `pallas_tpu`: TPU kernels, for bfloat16 and float32; first
derivatives in reverse mode only."""

IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

AttentionImplementation = Literal["xla", "blocks", "splash", "cudnn"]
"""What each is stands in `kernels.attention.attention`."""

ATTENTION_IMPLEMENTATIONS: tuple[str, ...] = get_args(AttentionImplementation)

GroupedImplementation = Literal["xla", "cpu", "megablox"]
"""What each is stands in `kernels.grouped_matmul.grouped_matmul`."""

GROUPED_IMPLEMENTATIONS: tuple[str, ...] = get_args(GroupedImplementation)

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

# Best first, as measured on that backend; an operation without such a version, or one that cannot
# take the arguments, goes to the next. `xla` takes everything, so it ends each list and serves
# other backends.
#
# cpu, attention: a training step (4,096 tokens, 6 layers, 4 heads of 64) takes 1.05, 1.03 and 0.80
# of the time with `blocks` that it takes with `xla`, at windows of 256, 512 and 1024 (two cores
# with 2 MiB of L2; with 1 MiB 1.09, 0.99 and 0.92, before `blocks` took segments well).
#
# cpu, PolyNorm and PolyReLU: forward and backward, float32, take 0.37 to 0.42 of the time of `xla`
# at [2048, 4096] and [8192, 1024] (`experiments.benchmark ops`, two cores, jax 0.12).
#
# gpu: not measured; XLA's fusions, and cuDNN for attention, which is what JAX's users take there.
# tpu, attention: compiled, not timed.
#
# tpu, grouped products: compiled, not timed (figures in `grouped_matmul.xla`). Who timed both on
# TPUs found megablox 1.2 times as fast forward, 1.3 in both passes: 32,768 tokens, four of 60
# experts of 2048 x 1408 (marin-community/marin, issue 2704).
#
# tpu, PolyNorm and PolyReLU: a kernel alone beats XLA (bfloat16 [8192, 4096] on v5e, by the
# compiler's own schedules: PolyNorm forward 0.16 against 1.03 ms, backward 0.26 against 1.23), but
# between two matmuls XLA fuses the polynomial into them and a kernel keeps it out: the block of
# 8192 x 2048 x 8256 on v5e, forward and backward, takes 9.24 ms with `xla`, 9.52 with `tpu` and at
# least 10.07 with `pallas_tpu` (relu2 9.14, SwiGLU 9.24; libtpu 0.0.50.1). An activation stands
# between matmuls, so XLA it is; `tpu` is how its backend needs PolyNorm told in a whole step, where
# gradients are formed `apart`: 1,323 ms in place of 1,340 in tpu_configs/v5e-16-dense-1b, 436 in
# place of 460 in v6e-256-dense-1b, and on v5p 24 layers of 16,384 x 2048 x 8256, both passes, take
# 205 ms with it and 224 with `xla`; relu2's 199, SwiGLU's 202 (there
# xla_tpu_scoped_vmem_limit_kib=49152). The block by itself is no guide to that: `xla` is ahead on
# v5e, on v5p (4.02 ms, `tpu` 4.12) and on v6e (3.06, 3.30), and behind on v4 (8.11, 7.75); and
# with `pallas_tpu` v6e's takes at least 2.92 and v4's 7.50, but whole steps of v6e-256 and v4-32
# 554 and 1,069 ms (with `tpu` 436 and 956).
PREFERENCE: Mapping[str, tuple[Preference, ...]] = {
    "cpu": (ShapeRule("blocks", lambda shape: shape[1] >= 512), "cpu", "xla"),
    "gpu": ("cudnn", "xla"),
    "tpu": ("splash", "tpu", "megablox", "xla"),
}


_target: ContextVar[str | None] = ContextVar("target", default=None)


def backend() -> str:
    """What programs are traced for: JAX's default backend, or that of `compiling_for`."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """While it lasts, choices are made for `platform`, which need not be here: "tpu".

    They are made when a function is traced, and `jax.jit` keeps what it traced: inside, give it
    functions that it has not seen outside.
    """
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def _always(*_arrays: Array, **_static: Any) -> None:
    """No reason against: the version takes any arguments on any backend."""


@dataclass(frozen=True)
class Kernel:
    """One way to compute an operation.

    Attributes:
        run: run(*arrays, **static) -> array.
        why_not: why_not(*arrays, **static) -> a reason in words why this version cannot take these
            arguments (shape, dtype, mesh), or None if it can.
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

    def __call__(self, *arrays: Array, implementation: str | None = None, **static: Any) -> Array:
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

    def _preferred(self, *arrays: Array, **static: Any) -> Kernel:
        for preferred in PREFERENCE.get(backend(), ("xla",)):
            some = isinstance(preferred, ShapeRule)
            version = self.versions.get(preferred.implementation if some else preferred)
            if version is None or (some and not preferred.shapes(arrays[0].shape)):
                continue
            if version.unsupported_reason(*arrays, **static) is None:
                return version
        raise LookupError(f"{self.name}: no version in PREFERENCE takes the arguments.")

    def _named(self, implementation: str, *arrays: Array, **static: Any) -> Kernel:
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
