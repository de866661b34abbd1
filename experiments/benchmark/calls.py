"""The three passes of a function as contestants, for JAX and for PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.harness import Contestant


def as_numpy(tree: Any) -> list[np.ndarray]:
    """The leaves of a tree of JAX arrays, in float64."""
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


@dataclass(frozen=True)
class JaxFunction:
    """A function under `jax.jit` with all it depends on as arguments: nothing can be folded.

    Attributes:
        name: of the contestant.
        f: f(*arguments, *fixed) -> array.
        arguments: it is differentiated by these.
        dy: cotangent of the result; its sharding and dtype are the result's.
        work: see `Contestant`.
        fixed: further arguments, without gradients.
    """

    name: str
    f: Callable[..., Any]
    arguments: tuple[Any, ...]
    dy: Any
    work: str
    fixed: tuple[Any, ...] = ()

    def contestant(self, which: str) -> Contestant:
        """The pass `which`, compiled at its first call."""
        call, arguments = getattr(self, f"_{which}")()
        return Contestant(
            self.name,
            call,
            jax.block_until_ready,
            prepare=lambda: arguments,
            work=self.work,
            values=lambda: as_numpy(call(*arguments)),
        )

    def compiled(self, which: str) -> tuple[jax.stages.Compiled, Contestant]:
        """The pass `which`, compiled, and what runs that very program."""
        call, arguments = getattr(self, f"_{which}")()
        program = call.lower(*arguments).compile()
        contestant = Contestant(self.name, program, jax.block_until_ready, lambda: arguments)
        return program, contestant

    def temporary_bytes(self, which: str) -> int | None:
        """Memory of the compiled pass besides its arguments and results; None: not known."""
        analysis: Any = self.compiled(which)[0].memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes

    def overwriting(self) -> Contestant:
        """Value and gradients, written over the arguments and over dy, which are donated."""

        def prepare() -> tuple[Any, ...]:
            return jax.tree.map(jnp.copy, (self.arguments, self.fixed, self.dy))

        call = jax.jit(self._value_and_gradients, donate_argnums=(0, 2))
        name = f"{self.name}, donated"
        return Contestant(name, call, jax.block_until_ready, prepare, self.work)

    def _forward(self) -> tuple[Any, tuple[Any, ...]]:
        return jax.jit(lambda *a: (self.f(*a),)), (*self.arguments, *self.fixed)

    def _backward(self) -> tuple[Any, tuple[Any, ...]]:
        # What the forward pass keeps crosses the border between two programs: that, and nothing
        # that could be computed again for free, is what the backward pass is given.
        _, pull = jax.jit(self._vjp)(self.arguments, self.fixed)
        return jax.jit(lambda pull, dy: pull(dy)), (pull, self.dy)

    def _both(self) -> tuple[Any, tuple[Any, ...]]:
        return jax.jit(self._value_and_gradients), (self.arguments, self.fixed, self.dy)

    def _value_and_gradients(self, arguments: Any, fixed: Any, dy: Any) -> Any:
        y, pull = self._vjp(arguments, fixed)
        return y, *pull(dy)

    def _vjp(self, arguments: Any, fixed: Any) -> Any:
        return jax.vjp(lambda *a: self.f(*a, *fixed), *arguments)


@dataclass(frozen=True)
class TorchFunction:
    """The same for a PyTorch function, eager or compiled.

    Attributes:
        name: of the contestant.
        f: f(*arguments, *fixed) -> tensor.
        arguments: leaf tensors that require gradients.
        dy: cotangent of the result.
        work: see `Contestant`.
        fixed: further arguments.
        gradients: gradients in `arguments`' order -> the order of the JAX function's.
        overwrites: whether the backward pass writes over dy; each call then has its own copy.
    """

    name: str
    f: Callable[..., Any]
    arguments: tuple[Any, ...]
    dy: Any
    work: str
    fixed: tuple[Any, ...] = ()
    gradients: Callable[[Sequence[Any]], Sequence[Any]] = tuple
    overwrites: bool = False

    def contestant(self, which: str) -> Contestant:
        """The pass `which`."""
        call, prepare = {
            "forward": (self._forward, tuple),
            "backward": (self._backward, lambda: (self._value(), self._dy())),
            "both": (self._both, lambda: (self._dy(),)),
        }[which]

        def values() -> list[np.ndarray]:
            outcome = self._ordered(which, call(*prepare()))
            return [tensor.detach().double().cpu().numpy() for tensor in outcome]

        return Contestant(self.name, call, waiter(self.dy), prepare, self.work, values)

    def _value(self) -> Any:
        return self.f(*self.arguments, *self.fixed)

    def _dy(self) -> Any:
        return self.dy.clone() if self.overwrites else self.dy

    def _ordered(self, which: str, outcome: Sequence[Any]) -> list[Any]:
        value = list(outcome[:1]) if which != "backward" else []
        gradients = outcome[len(value) :]
        return [*value, *(self.gradients(gradients) if gradients else ())]

    def _forward(self) -> tuple[Any, ...]:
        import torch  # pyright: ignore[reportMissingImports]

        with torch.no_grad():
            return (self._value(),)

    def _backward(self, y: Any, dy: Any) -> tuple[Any, ...]:
        # The graph of y is a new one each time, made outside of the clock: keeping one for several
        # calls would turn optimisations of torch.compile off.
        import torch  # pyright: ignore[reportMissingImports]

        return torch.autograd.grad(y, self.arguments, dy)

    def _both(self, dy: Any) -> tuple[Any, ...]:
        y = self._value()
        return y, *self._backward(y, dy)


def waiter(tensor: Any) -> Callable[[Any], None]:
    """What waits for PyTorch on the device of `tensor`."""
    import torch  # pyright: ignore[reportMissingImports]

    if tensor.device.type != "cuda":
        return lambda outcome: None
    return lambda outcome: torch.cuda.synchronize()


def to_torch(array: Any, device: str, *, gradient: bool = False) -> Any:
    """A leaf tensor with the values and dtype of a JAX array."""
    import torch  # pyright: ignore[reportMissingImports]

    dtype = getattr(torch, array.dtype.name)
    values = np.array(array.astype("float32") if array.dtype.kind in "fV" else array)
    return torch.from_numpy(values).to(device, dtype).requires_grad_(gradient)
