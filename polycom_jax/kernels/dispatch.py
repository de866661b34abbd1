"""Which version of an operation runs: the one named, or the best of those the backend has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
from jaxtyping import Array

from polycom_jax._errors import InputError, unknown

Implementation = Literal["reference", "xla"]
"""`reference`: the plain definition, differentiated by JAX. `xla`: the same arithmetic with a
derivative rule of its own that saves only the inputs; all of JAX's transformations work on both."""

IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

# Best first, as measured on that backend; an operation without such a version, or one that cannot
# take the arguments, goes to the next. `xla` takes everything, so it ends each list and serves
# other backends.
PREFERENCE: Mapping[str, tuple[Implementation, ...]] = {
    "cpu": ("xla",),
    "gpu": ("xla",),
    "tpu": ("xla",),
}


def _always(*_arrays: Array, **_static: Any) -> None:
    """No reason against: the version takes any arguments on any backend."""


@dataclass(frozen=True)
class Version:
    """One way to compute an operation.

    Attributes:
        run: run(*arrays, **static) -> array.
        why_not: why_not(*arrays, **static) -> a reason in words why this version cannot take these
            arguments on the default backend (shape, dtype, hardware), or None if it can.
    """

    run: Callable[..., Array]
    why_not: Callable[..., str | None] = _always


@dataclass(frozen=True)
class Operation:
    """An operation with its versions; calling it runs one of them.

    Attributes:
        name: as users know it, for messages.
        versions: by implementation name.
    """

    name: str
    versions: Mapping[str, Version]

    def __call__(self, *arrays: Array, implementation: str | None = None, **static: Any) -> Array:
        """Runs the named version, or the first of the backend's preference that can take the
        arguments.

        The backend is JAX's default one: when compiling ahead for another, name the implementation.

        Raises:
            InputError: an unknown name, or a named version that cannot run, with its reason.
        """
        if implementation is None:
            version = self._preferred(*arrays, **static)
        else:
            version = self._named(implementation, *arrays, **static)
        with jax.named_scope(self.name):
            return version.run(*arrays, **static)

    def _preferred(self, *arrays: Array, **static: Any) -> Version:
        for name in PREFERENCE.get(jax.default_backend(), ("xla",)):
            version = self.versions.get(name)
            if version is not None and version.why_not(*arrays, **static) is None:
                return version
        raise LookupError(f"{self.name}: no version in PREFERENCE takes the arguments.")

    def _named(self, implementation: str, *arrays: Array, **static: Any) -> Version:
        if implementation not in self.versions:
            raise unknown(f"implementation of {self.name}", implementation, self.versions)
        version = self.versions[implementation]
        reason = version.why_not(*arrays, **static)
        if reason is not None:
            raise InputError(
                f"{self.name}: implementation={implementation!r} cannot run here: {reason};"
                " implementation=None takes one that can."
            )
        return version
