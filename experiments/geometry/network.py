"""Networks with one hidden layer and an activation of the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from polycom_jax import params as pm
from polycom_jax.params import Params, ParamSpec, Specs
from polycom_jax.table import Activation

Readout = Literal["fixed", "trained"]


@dataclass(frozen=True)
class Network:
    """x -> V h(x) + c, h(x) = activation(W x + b); gated activations have two W and b.

    W starts uniform on +-1 / sqrt(dim), b normal with deviation 1 / sqrt(dim), c at 0. V is fixed:
    each unit has weight +-1 / sqrt(width) on one label, as many of each sign and label as of any
    other; or trained, and starts uniform on +-1 / sqrt(width).

    Attributes:
        activation: of the hidden layer; what it learns is trained.
        dim: of inputs.
        labels: how many outputs.
        width: of the hidden layer.
        readout: what V is.
    """

    activation: Activation
    dim: int
    labels: int
    width: int
    readout: Readout

    @cached_property
    def specs(self) -> Specs:
        """The parameters' declaration; names are those for all activations."""
        maps = ("gate", "up") if self.activation.gated else ("up",)
        tree: dict[str, Specs] = {name: self._inward() for name in maps}
        tree["activation"] = self.activation.specs_at(self.width)
        tree["c"] = ParamSpec((self.labels,), (None,), jax.nn.initializers.zeros, "norm")
        if self.readout == "trained":
            start = _uniform(1 / math.sqrt(self.width))
            tree["v"] = ParamSpec((self.width, self.labels), (None, None), start, "matrix")
        return tree

    def _inward(self) -> Specs:
        scale = 1 / math.sqrt(self.dim)
        normal = jax.nn.initializers.normal(scale)
        return {
            "w": ParamSpec((self.dim, self.width), (None, None), _uniform(scale), "matrix"),
            "b": ParamSpec((self.width,), (None,), normal, "norm"),
        }

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters: of one key, equal for all activations wherever names agree."""
        return pm.init(self.specs, key)

    def hidden(self, params: Params, x: Float[Array, "N D"]) -> Float[Array, "N W"]:
        """The hidden layer."""
        maps = [params[name] for name in ("gate", "up") if name in params]
        return self.activation.apply(
            params["activation"], *(x @ each["w"] + each["b"][None] for each in maps)
        )

    def logits(self, params: Params, x: Float[Array, "N D"]) -> Float[Array, "N k"]:
        """The outputs, one a label."""
        v = params["v"] if self.readout == "trained" else self._fixed()
        return self.hidden(params, x) @ v + params["c"][None]

    def _fixed(self) -> Float[Array, "W k"]:
        unit = jnp.arange(self.width)
        sign = 1.0 - 2.0 * (unit % 2)
        label = jax.nn.one_hot(unit // 2 % self.labels, self.labels)
        return sign[:, None] * label / math.sqrt(self.width)


def _uniform(scale: float) -> Any:
    def draw(key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -scale, scale)

    return draw
