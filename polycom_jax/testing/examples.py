"""What a check is given: an activation, arguments, float64 values; and how they are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polycom_jax.params import Params
from polycom_jax.table import Activation

F32 = 2e-6
"""The bound for float32, relative to the largest number of an array."""

SAME = 4e-7
"""For the same arithmetic, compiled in another way."""

Exact = Callable[..., np.ndarray]
"""exact(params, *hidden) -> value, of float64 NumPy arrays."""


class ContractError(AssertionError):
    """An activation breaks its contract: the message names the check, the input and the numbers."""


@dataclass(frozen=True)
class Example:
    """An activation, where it is tried, and what it should give.

    Attributes:
        act: the activation.
        exact: its float64 evaluation, written apart from it; None: its own, in float64.
        width: of the hidden array; groups divide it.
        largest: magnitude up to which inputs must give finite results.
    """

    act: Activation
    exact: Exact | None = None
    width: int = 16
    largest: float = float("inf")

    def params(self) -> Params:
        """Parameters off their initial values."""
        rng = np.random.default_rng(3)

        def moved(value: Any) -> jax.Array:
            noise = rng.standard_normal(np.shape(value)) * 0.1
            size = np.maximum(np.abs(value), 0.1)
            return jnp.asarray(np.asarray(value) + noise * np.minimum(size, 1), jnp.float32)

        start = self.act.init(jax.random.key(0), self.width)
        return {name: moved(start[name]) for name in self.act.parameters}

    def hidden(self, dtype: Any = jnp.float32, rows: int = 4) -> list[jax.Array]:
        """Arrays [rows, width] of the inputs, away from kinks at 0."""
        rng = np.random.default_rng(7)

        def draw() -> jax.Array:
            values = rng.standard_normal((rows, self.width))
            away = jnp.asarray(values + np.copysign(0.05, values), jnp.float32)
            return away.astype(dtype)

        return [draw() for _ in range(1 + self.act.gated)]

    def cotangent(self, dtype: Any = jnp.float32, rows: int = 4) -> jax.Array:
        """What gradients are taken along, [rows, width]."""
        rng = np.random.default_rng(11)
        return jnp.asarray(rng.standard_normal((rows, self.width)), jnp.float32).astype(dtype)

    def wider(self, factor: int) -> "Example":
        """The same of a wider array."""
        return replace(self, width=self.width * factor)

    @cached_property
    def evaluate(self) -> Exact:
        """Value in float64, of NumPy arrays."""
        if self.exact is not None:
            return self.exact
        run = jax.jit(self.act.apply)

        def own(params: Params, *hidden: np.ndarray) -> np.ndarray:
            with jax.enable_x64(True):
                wide = {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}
                return np.asarray(run(wide, *(jnp.asarray(h, jnp.float64) for h in hidden)))

        return own

    def fail(self, what: str) -> ContractError:
        """The error, with the activation's name before it."""
        return ContractError(f"{self.act.name}: {what}")


def gradients(act: Activation, params: Params, hidden: Sequence[Any], cotangent: Any) -> Any:
    """(value, (gradients of parameters, gradient of each input ...))."""
    value, vjp = jax.vjp(act.apply, params, *hidden)
    return value, vjp(cotangent)


compiled = jax.jit(gradients, static_argnums=0)


def float64(tree: Any) -> Any:
    """Every leaf as a NumPy array of float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float64), tree)


def names(act: Activation) -> list[str]:
    """What the leaves of `gradients` are called, in order."""
    inputs = ["gate", "up"] if act.gated else ["x"]
    return [
        "the value",
        *(f"the gradient of {name}" for name in (*sorted(act.parameters), *inputs)),
    ]


def compare(
    example: Example,
    check: str,
    got: Any,
    wanted: Any,
    tolerance: float,
    hidden: Sequence[Any] = (),
    labels: Sequence[str] | None = None,
    sizes: Sequence[float] | None = None,
) -> None:
    """Raises `ContractError` unless each leaf is within `tolerance` of its largest entry, or of its
    size where `sizes` has a larger one."""
    labels = labels or names(example.act)
    least = sizes or [0.0] * len(labels)
    pairs = zip(labels, least, jax.tree.leaves(got), jax.tree.leaves(wanted), strict=False)
    for label, size, a, b in pairs:
        a, b = float64(a), float64(b)
        if a.shape != b.shape:
            raise example.fail(f"{check}: {label} has shape {a.shape}, expected {b.shape}.")
        if not a.size:
            continue
        if np.isnan(b).any():
            at = tuple(int(i) for i in np.argwhere(np.isnan(b))[0])
            raise example.fail(
                f"{check}: {label} is {a[at]:.9g} where NaN is expected: the activation has no"
                f" number{place(hidden, at) or ' there'}."
            )
        finite = b[np.isfinite(b)]
        scale = max(1e-3, size, float(np.max(np.abs(finite), initial=0)))
        with np.errstate(invalid="ignore"):
            off = np.where(a == b, 0, np.abs(a - b))
        off = np.where(np.isnan(off), np.inf, off)
        if np.max(off) > tolerance * scale:
            at = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
            too_large = not np.isfinite(a[at]) and abs(b[at]) > np.finfo(np.float32).max
            hint = " float32 does not hold that; largest= says how far out inputs go."
            raise example.fail(
                f"{check}: {label} is {a[at]:.9g}, expected {b[at]:.9g}"
                f" (within {tolerance * scale:.2g}){place(hidden, at)}.{hint if too_large else ''}"
            )


def place(hidden: Sequence[Any], at: tuple[int, ...]) -> str:
    """At which input that is, where the place is an element of the inputs."""
    if not hidden or np.shape(hidden[0])[-len(at) :] != np.shape(hidden[0]) or not at:
        return ""
    numbers = ", ".join(f"{float(h[at]):.9g}" for h in hidden)
    return f" at {'gate, up' if len(hidden) == 2 else 'x'} = {numbers} (element {list(at)})"
