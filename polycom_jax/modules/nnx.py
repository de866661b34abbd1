"""NNX modules: PolyNorm, PolyReLU, any row of the table, and a feed-forward block.

They own their coefficients, in float32 whatever `dtype` is, and call the library's functions.
"""

from functools import partial
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import EPS
from polycom_jax.activations.polynomial import init_coeffs
from polycom_jax.kernels.dispatch import Implementation
from polycom_jax.params import Initializer, name_key
from polycom_jax.table import ActivationOptions, get_activation

LECUN_NORMAL: Initializer = nnx.initializers.lecun_normal()


class Activation(nnx.Module):
    """Any row of the activation table, with its parameters (`coeffs`, `slope`, or none).

    Args:
        activation: one of `polycom_jax.ACTIVATIONS`.
        options: what the row may be told.
        rngs: its `params` stream is drawn from once, whatever the row.
    """

    def __init__(
        self,
        activation: str = "poly_norm",
        options: ActivationOptions | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.row = get_activation(activation, options)
        key = rngs.params()
        for name, spec in self.row.specs.items():
            setattr(self, name, nnx.Param(spec.init(name_key(key, name), spec.shape, spec.dtype)))

    def __call__(self, *hidden: Float[Array, "*S F"]) -> Float[Array, "*S F"]:
        """Applies it to x, or to gate and up if the row is gated; shape and dtype are kept."""
        return self.row.apply({name: getattr(self, name)[...] for name in self.row.specs}, *hidden)


class PolyNorm(nnx.Module):
    """`polycom_jax.poly_norm` with its own `coeffs` [order + 1].

    Args:
        order: degree of the polynomial.
        eps: under each root.
        implementation: None for the backend's best.
    """

    def __init__(
        self, order: int = 3, *, eps: float = EPS, implementation: Implementation | None = None
    ):
        self.row = get_activation("poly_norm", ActivationOptions(order, eps, implementation))
        self.coeffs = nnx.Param(init_coeffs(order))

    def __call__(self, x: Float[Array, "*S F"]) -> Float[Array, "*S F"]:
        """PolyNorm over the last axis; shape and dtype are kept."""
        return self.row.apply({"coeffs": self.coeffs[...]}, x)


class PolyReLU(nnx.Module):
    """`polycom_jax.poly_relu` with its own `coeffs` [order + 1].

    Args:
        order: degree of the polynomial.
        implementation: None for the backend's best.
    """

    def __init__(self, order: int = 3, *, implementation: Implementation | None = None):
        options = ActivationOptions(order=order, implementation=implementation)
        self.row = get_activation("poly_relu", options)
        self.coeffs = nnx.Param(init_coeffs(order))

    def __call__(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """PolyReLU of every element; shape and dtype are kept."""
        return self.row.apply({"coeffs": self.coeffs[...]}, x)


class FeedForward(nnx.Module):
    """act(x W_up) W_down, or act(x W_gate, x W_up) W_down where the row is gated; no biases.

    Keys come from the names of the layers and one draw of the `params` stream, so blocks that
    differ in the activation start from the same `up` and `down`, and so does everything built after
    them.

    Args:
        features: width D of input and output.
        hidden_features: width F of the hidden layer, taken literally (`Activation.width` of the row
            gives the one with as many weights as a gated block).
        activation: one of `polycom_jax.ACTIVATIONS`.
        options: what the row may be told.
        dtype: of the matrix products; None: that of input and kernels. Kernels are float32.
        kernel_init: of all kernels.
        rngs: its `params` stream is drawn from once.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: str = "poly_norm",
        options: ActivationOptions | None = None,
        dtype: Any = None,
        kernel_init: Initializer = LECUN_NORMAL,
        rngs: nnx.Rngs,
    ):
        key = rngs.params()

        def own(name: str) -> nnx.Rngs:
            return nnx.Rngs(params=name_key(key, name))

        linear = partial(nnx.Linear, use_bias=False, dtype=dtype, kernel_init=kernel_init)
        self.activation = Activation(activation, options, rngs=own("activation"))
        if self.activation.row.gated:
            self.gate = linear(features, hidden_features, rngs=own("gate"))
        self.up = linear(features, hidden_features, rngs=own("up"))
        self.down = linear(hidden_features, features, rngs=own("down"))

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        """The block; the shape of `x` is kept, the dtype is that of the matrix products."""
        layers = (self.gate, self.up) if self.activation.row.gated else (self.up,)
        return self.down(self.activation(*(layer(x) for layer in layers)))


__all__ = ["Activation", "FeedForward", "PolyNorm", "PolyReLU"]
