"""Linen modules: PolyNorm, PolyReLU, any row of the table, and a feed-forward block.

They own their coefficients, in float32 whatever `dtype` is, and call the library's functions.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import EPS
from polycom_jax.kernels.dispatch import Implementation
from polycom_jax.params import Initializer
from polycom_jax.table import ActivationOptions, get_activation


class Activation(nn.Module):
    """Any row of the activation table, with its parameters (`coeffs`, `slope`, or none).

    Attributes:
        activation: one of `polycom_jax.ACTIVATIONS`.
        options: what the row may be told.
    """

    activation: str = "poly_norm"
    options: ActivationOptions = ActivationOptions()

    @nn.compact
    def __call__(self, *hidden: Float[Array, "*S F"]) -> Float[Array, "*S F"]:
        """Applies it to x, or to gate and up if the row is gated; shape and dtype are kept."""
        return _apply(self, self.activation, self.options, hidden)


class PolyNorm(nn.Module):
    """`polycom_jax.poly_norm` with its own `coeffs` [order + 1].

    Attributes:
        order: degree of the polynomial.
        eps: under each root.
        implementation: None for the backend's best.
    """

    order: int = 3
    eps: float = EPS
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*S F"]) -> Float[Array, "*S F"]:
        """PolyNorm over the last axis; shape and dtype are kept."""
        options = ActivationOptions(self.order, self.eps, self.implementation)
        return _apply(self, "poly_norm", options, (x,))


class PolyReLU(nn.Module):
    """`polycom_jax.poly_relu` with its own `coeffs` [order + 1].

    Attributes:
        order: degree of the polynomial.
        implementation: None for the backend's best.
    """

    order: int = 3
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """PolyReLU of every element; shape and dtype are kept."""
        options = ActivationOptions(order=self.order, implementation=self.implementation)
        return _apply(self, "poly_relu", options, (x,))


class FeedForward(nn.Module):
    """act(x W_up) W_down, or act(x W_gate, x W_up) W_down where the row is gated; no biases.

    Attributes:
        hidden_features: width F of the hidden layer, taken literally (`Activation.width` of the row
            gives the one with as many weights as a gated block).
        activation: one of `polycom_jax.ACTIVATIONS`.
        options: what the row may be told.
        dtype: of the matrix products; None: that of input and kernels. Kernels are float32.
        kernel_init: of all kernels.
    """

    hidden_features: int
    activation: str = "poly_norm"
    options: ActivationOptions = ActivationOptions()
    dtype: Any = None
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        """The block; the shape of `x` is kept, the dtype is that of the matrix products."""
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init)
        names = ("gate", "up") if get_activation(self.activation, self.options).gated else ("up",)
        hidden = [dense(self.hidden_features, name=name)(x) for name in names]
        y = Activation(self.activation, self.options, name="activation")(*hidden)
        return dense(x.shape[-1], name="down")(y)


def _apply(
    module: nn.Module, name: str, options: ActivationOptions, hidden: Sequence[Array]
) -> Array:
    """The row's function with parameters that the module owns."""
    row = get_activation(name, options)
    params = {n: module.param(n, s.init, s.shape, s.dtype) for n, s in row.specs.items()}
    return row.apply(params, *hidden)


__all__ = ["Activation", "FeedForward", "PolyNorm", "PolyReLU"]
