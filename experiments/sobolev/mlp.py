"""Multilayer perceptrons on [0,1]^d with an activation of the project's table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key

from polycom_jax import params as pm
from polycom_jax._errors import require
from polycom_jax.params import Params, ParamSpec, Specs
from polycom_jax.table import Activation, get_activation

MAX_WIDTH = 4096


@dataclass(frozen=True)
class Mlp:
    """x -> w . h_L + b, h_l = activation(W_l h_{l-1} + b_l), h_0 = 2 x - 1.

    Gated activations take two maps a layer.

    Weights start normal with variance 1 / fan-in, biases uniform on [-1, 1]: the same for all
    activations. An activation's own parameters are one set a layer, as in the paper.

    Attributes:
        activation: its name in `polycom_jax.ACTIVATIONS`.
        width: of each hidden layer.
        dim: d.
        layers: hidden ones, L.
    """

    activation: str
    width: int
    dim: int
    layers: int

    @cached_property
    def function(self) -> Activation:
        """The activation."""
        return get_activation(self.activation)

    @cached_property
    def specs(self) -> Specs:
        """The parameters' declaration."""
        maps = ("gate", "up") if self.function.gated else ("up",)
        tree: dict[str, Specs] = {}
        for layer in range(self.layers):
            fan_in = self.width if layer else self.dim
            tree[f"layer{layer}"] = {
                **{name: _affine(fan_in, (self.width,)) for name in maps},
                "activation": self.function.specs_at(self.width),
            }
        return {**tree, "out": _affine(self.width, ())}

    @property
    def size(self) -> int:
        """Number of parameters."""
        return pm.count(self.specs)

    def init(self, key: Key[Array, ""], target: Int[Array, ""] | None = None) -> Params:
        """Initial parameters, the same whatever the target."""
        return pm.init(self.specs, key)

    def apply(self, params: Params, x: Float[Array, "P d"]) -> Float[Array, " P"]:
        """Values at the points `x` of [0,1]^d, in its dtype or a wider one of the parameters."""
        h = 2 * x - 1
        for layer in range(self.layers):
            own = params[f"layer{layer}"]
            maps = ("gate", "up") if self.function.gated else ("up",)
            hidden = [h @ own[name]["w"] + own[name]["b"][None] for name in maps]
            h = self.function.apply(own["activation"], *hidden)
        return h @ params["out"]["w"] + params["out"]["b"]


def _affine(fan_in: int, shape: tuple[int, ...]) -> Specs:
    normal = jax.nn.initializers.normal(1 / math.sqrt(fan_in))
    return {
        "w": ParamSpec((fan_in, *shape), (None,) * (1 + len(shape)), normal, "matrix"),
        "b": ParamSpec(shape, (None,) * len(shape), _uniform, "norm"),
    }


def _uniform(key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
    return jax.random.uniform(key, tuple(shape), dtype, -1, 1)


def mlp_of_size(activation: str, size: int, *, dim: int, layers: int) -> Mlp:
    """The widest one with at most `size` parameters, so that all activations have as many.

    Where an activation reads groups of units, widths are multiples of their number.

    Raises:
        InputError: not even width 2 fits, or more than width `MAX_WIDTH` does.
    """
    groups = math.lcm(*(each.groups for each in get_activation(activation).parameters.values()))

    def at(times: int) -> Mlp:
        return Mlp(activation, times * groups, dim, layers)

    least, most = (2 if groups == 1 else 1), MAX_WIDTH // groups
    require(
        at(most).size > size,
        f"sizes: {size} parameters are too many for {activation} with {layers} hidden"
        f" layers in dimension {dim}; a width of {at(most).width} has {at(most).size}.",
    )
    low, high = least - 1, most
    while low < high:  # the largest width that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at(middle).size <= size else (low, middle - 1)
    require(
        low >= least,
        f"sizes: {size} parameters are too few for {activation} with {layers} hidden layers"
        f" in dimension {dim}; the smallest has {at(least).size}.",
    )
    return at(low)
