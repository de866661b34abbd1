"""NNX modules: PolyNorm, PolyReLU, any activation of the table, and a feed-forward block.

They own their parameters and call the library's functions. Coefficients are float32 whatever the
dtypes of a block are (1/3 in bfloat16 is 0.33398), unless `param_dtype` of their own module says
otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from polycom_jax._errors import require
from polycom_jax.activations.inputs import EPS
from polycom_jax.kernels.implementations import Implementation
from polycom_jax.params import Initializer, name_key
from polycom_jax.table import Activation as Row
from polycom_jax.table import ActivationOptions, get_activation

LECUN_NORMAL: Initializer = nnx.initializers.lecun_normal()


class Activation(nnx.Module):
    """Any activation of the table, with its parameters (`coeffs`, `slope`, or none).

    Args:
        activation: as `polycom_jax.get_activation` takes it: a name, or an activation.
        options: of the activation.
        features: width of what it is applied to, which parameters of single channels need.
        param_dtype: of its parameters.
        rngs: its `params` stream is drawn from once, whatever the activation.
    """

    def __init__(
        self,
        activation: str | Row = "poly_norm",
        options: ActivationOptions | None = None,
        *,
        features: int | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.function = get_activation(activation, options)
        key = rngs.params()
        for name, spec in self.function.specs_at(features).items():
            require(
                not hasattr(self, name),
                f"activation {self.function.name!r}: an NNX module has {name!r} already; give the"
                " parameter another name.",
            )
            setattr(self, name, nnx.Param(spec.init(name_key(key, name), spec.shape, param_dtype)))

    def __call__(self, *hidden: Float[Array, "*S F"]) -> Float[Array, "*S F"]:
        """Applies it to x, or to gate and up if it is gated; in the same shape and dtype."""
        own = {name: getattr(self, name)[...] for name in self.function.parameters}
        return self.function.apply(own, *hidden)


class PolyNorm(Activation):
    """`polycom_jax.poly_norm` over the last axis with its own `coeffs` [order + 1].

    Args:
        order: degree of the polynomial.
        eps: under each root.
        implementation: None for the backend's best.
        param_dtype: of the coefficients.
        rngs: taken as other modules take it; the initial coefficients are constants.
    """

    coeffs: nnx.Param[Array]

    def __init__(
        self,
        order: int = 3,
        *,
        eps: float = EPS,
        implementation: Implementation | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        options = ActivationOptions(order, eps, implementation)
        super().__init__("poly_norm", options, param_dtype=param_dtype, rngs=nnx.Rngs(0))


class PolyReLU(Activation):
    """`polycom_jax.poly_relu` with its own `coeffs` [order + 1].

    Args:
        order: degree of the polynomial.
        implementation: None for the backend's best.
        param_dtype: of the coefficients.
        rngs: taken as other modules take it; the initial coefficients are constants.
    """

    coeffs: nnx.Param[Array]

    def __init__(
        self,
        order: int = 3,
        *,
        implementation: Implementation | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        options = ActivationOptions(order, implementation=implementation)
        super().__init__("poly_relu", options, param_dtype=param_dtype, rngs=nnx.Rngs(0))


class FeedForward(nnx.Module):
    """act(x W_up) W_down, or act(x W_gate, x W_up) W_down where the activation is gated; no biases.

    Keys come from the names of the layers and one draw of the `params` stream, so blocks that
    differ in the activation start from the same `up` and `down`, and so does everything built after
    them.

    Args:
        features: width D of input and output.
        hidden_features: width F of the hidden layer, taken literally (an activation's `width`
            gives the one with as many weights as a gated block).
        activation: as `polycom_jax.get_activation` takes it: a name, or an activation.
        options: of the activation.
        dtype: of the matrix products; None: that of input and kernels.
        param_dtype: of the kernels.
        precision: of the products, as in `nnx.Linear`.
        dot_general: what multiplies, as in `nnx.Linear`.
        kernel_init: of all kernels.
        kernel_axes: names of the axes (features, hidden) for `nnx.with_partitioning`: `up` and
            `gate` have them in this order, `down` in the other one. Flax wants a mesh then, from
            `jax.set_mesh`. None: kernels have no names.
        rngs: its `params` stream is drawn from once.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: str | Row = "poly_norm",
        options: ActivationOptions | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        dot_general: Callable[..., Array] = jax.lax.dot_general,
        kernel_init: Initializer = LECUN_NORMAL,
        kernel_axes: tuple[str | None, str | None] | None = None,
        rngs: nnx.Rngs,
    ):
        key = rngs.params()

        def own(name: str) -> nnx.Rngs:
            return nnx.Rngs(params=name_key(key, name))

        def linear(width: int, out: int, name: str, axes: Any) -> nnx.Linear:
            return nnx.Linear(
                width,
                out,
                use_bias=False,
                dtype=dtype,
                param_dtype=param_dtype,
                precision=precision,
                dot_general=dot_general,
                kernel_init=nnx.with_partitioning(kernel_init, axes) if axes else kernel_init,
                rngs=own(name),
            )

        self.activation = Activation(
            activation, options, features=hidden_features, rngs=own("activation")
        )
        if self.activation.function.gated:
            self.gate = linear(features, hidden_features, "gate", kernel_axes)
        self.up = linear(features, hidden_features, "up", kernel_axes)
        self.down = linear(hidden_features, features, "down", kernel_axes and kernel_axes[::-1])

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        """The block, in the shape of `x` and the dtype of the matrix products."""
        layers = (self.gate, self.up) if self.activation.function.gated else (self.up,)
        return self.down(self.activation(*(layer(x) for layer in layers)))


__all__ = ["Activation", "FeedForward", "PolyNorm", "PolyReLU"]
