"""Linen modules: PolyNorm, PolyReLU, any activation of the table, and a feed-forward block.

They own their parameters and call the library's functions. Coefficients are float32 whatever the
dtypes of a block are (1/3 in bfloat16 is 0.33398), unless `param_dtype` of their own module says
otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from polycom_jax._errors import require
from polycom_jax.activations.inputs import EPS
from polycom_jax.kernels.implementations import Implementation
from polycom_jax.params import Initializer
from polycom_jax.table import Activation as Row
from polycom_jax.table import ActivationOptions, get_activation


class Activation(nn.Module):
    """Any activation of the table, with its parameters (`coeffs`, `slope`, or none).

    Attributes:
        activation: as `polycom_jax.get_activation` takes it: a name, or an activation.
        options: of the activation.
        param_dtype: of its parameters.
    """

    activation: str | Row = "poly_norm"
    options: ActivationOptions = ActivationOptions()
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *hidden: Float[Array, "*S F"]) -> Float[Array, "*S F"]:
        """Applies it to x, or to gate and up if it is gated; in the same shape and dtype."""
        return _apply(self, self.activation, self.options, hidden, self.param_dtype)


class PolyNorm(nn.Module):
    """`polycom_jax.poly_norm` with its own `coeffs` [order + 1].

    Attributes:
        order: degree of the polynomial.
        eps: under each root.
        implementation: None for the backend's best.
        param_dtype: of the coefficients.
    """

    order: int = 3
    eps: float = EPS
    implementation: Implementation | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*S F"]) -> Float[Array, "*S F"]:
        """PolyNorm over the last axis; in the same shape and dtype."""
        options = ActivationOptions(self.order, self.eps, self.implementation)
        return _apply(self, "poly_norm", options, (x,), self.param_dtype)


class PolyReLU(nn.Module):
    """`polycom_jax.poly_relu` with its own `coeffs` [order + 1].

    Attributes:
        order: degree of the polynomial.
        implementation: None for the backend's best.
        param_dtype: of the coefficients.
    """

    order: int = 3
    implementation: Implementation | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """PolyReLU of every element; in the same shape and dtype."""
        options = ActivationOptions(self.order, implementation=self.implementation)
        return _apply(self, "poly_relu", options, (x,), self.param_dtype)


class FeedForward(nn.Module):
    """act(x W_up) W_down, or act(x W_gate, x W_up) W_down where the activation is gated; no biases.

    Attributes:
        hidden_features: width F of the hidden layer, taken literally (an activation's `width`
            gives the one with as many weights as a gated block).
        activation: as `polycom_jax.get_activation` takes it: a name, or an activation.
        options: of the activation.
        dtype: of the matrix products; None: that of input and kernels.
        param_dtype: of the kernels.
        precision: of the products, as in `nn.Dense`.
        dot_general: in the place of `jax.lax.dot_general`, as in `nn.Dense`.
        kernel_init: of all kernels.
        kernel_axes: names of the axes (features, hidden) for `nn.with_partitioning`: `up` and
            `gate` have them in this order, `down` in the other one. None: kernels have no names.
    """

    hidden_features: int
    activation: str | Row = "poly_norm"
    options: ActivationOptions = ActivationOptions()
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    dot_general: Callable[..., Array] | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    kernel_axes: tuple[str | None, str | None] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        """The block, in the shape of `x` and the dtype of the matrix products."""
        gated = get_activation(self.activation).gated
        names = ("gate", "up") if gated else ("up",)
        hidden = [self._dense(self.hidden_features, name, self.kernel_axes)(x) for name in names]
        y = Activation(self.activation, self.options, name="activation")(*hidden)
        return self._dense(x.shape[-1], "down", self.kernel_axes and self.kernel_axes[::-1])(y)

    def _dense(self, features: int, name: str, axes: Any) -> nn.Dense:
        init = self.kernel_init
        return nn.Dense(
            features,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            dot_general=self.dot_general,
            kernel_init=nn.with_partitioning(init, axes) if axes else init,
            name=name,
        )


def _apply(
    module: nn.Module,
    name: str | Row,
    options: ActivationOptions,
    hidden: Sequence[Array],
    param_dtype: Any,
) -> Array:
    """The activation with parameters that the module owns."""
    act = get_activation(name, None if options == ActivationOptions() else options)
    specs = act.specs_at(hidden[0].shape[-1] if hidden[0].ndim else None)
    for each in specs:
        require(
            not hasattr(module, each),
            f"activation {act.name!r}: a Linen module has {each!r} already; give the parameter"
            " another name.",
        )
    params = {n: module.param(n, s.init, s.shape, param_dtype) for n, s in specs.items()}
    return act.apply(params, *hidden)


__all__ = ["Activation", "FeedForward", "PolyNorm", "PolyReLU"]
