"""The baselines: element-wise activations and gated linear units, with PolyCom's dtype rule.

All of them compute in the work dtype (float32, or float64 for float64 input), round once, and keep
nothing for the backward pass but their inputs, so that a comparison with PolyCom compares
functions, not roundings or memory.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from polycom_jax.activations.inputs import check_floating, check_gate, recomputed
from polycom_jax.activations.rectifier import rectified, squared_relu

Elementwise = Callable[[Array], Array]


def exact_gelu(x: Array) -> Array:
    """x Phi(x) of an array of the work dtype."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    # Beyond 30 the tanh is 1 in float64 too, but x^3 may be infinite: 0 * inf in the derivative.
    bounded = jnp.clip(x, -30, 30)
    inner = math.sqrt(2 / math.pi) * (bounded + 0.044715 * bounded**3)
    return 0.5 * x * (1 + jnp.tanh(inner))


@partial(jax.jit, static_argnums=0)
def _product(f: Elementwise, x: Array, *factors: Array) -> Array:
    """f(x) times the factors."""
    return recomputed(lambda x, *factors: math.prod(factors, start=f(x)), x, *factors)


def _elementwise(f: Elementwise, x: ArrayLike) -> Array:
    return _product(f, check_floating("x", x))


def _gated(f: Elementwise, gate: ArrayLike, up: ArrayLike) -> Array:
    gate = check_floating("gate", gate)
    return _product(f, gate, check_gate(gate, up))


def relu(x: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """max(x, 0), with derivative 0 at 0. Any shape and floating dtype, which the result has too."""
    return _elementwise(rectified, x)


def relu2(x: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """Squared ReLU: max(x, 0)^2. Any shape and floating dtype, which the result has too.

    Reference: So et al., "Primer", arXiv 2109.08668.
    """
    return _elementwise(squared_relu, x)


def gelu(x: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """GELU, exact: x Phi(x) = x (1 + erf(x / sqrt 2)) / 2. Any shape and floating dtype, kept.

    Reference: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    return _elementwise(exact_gelu, x)


def gelu_tanh(x: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """GELU by tanh: x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2. Any shape and dtype, kept.

    Reference: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    return _elementwise(_gelu_tanh, x)


def silu(x: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """SiLU (Swish with beta = 1): x / (1 + exp(-x)). Any shape and floating dtype, kept.

    Reference: Elfwing et al., arXiv 1702.03118; Ramachandran et al., arXiv 1710.05941.
    """
    return _elementwise(jax.nn.silu, x)


def tanh(x: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """The hyperbolic tangent. Any shape and floating dtype, which the result has too."""
    return _elementwise(jnp.tanh, x)


def swiglu(gate: Float[ArrayLike, "*S"], up: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """silu(gate) * up, multiplied before the one rounding. Equal shapes and dtypes, kept.

    Reference: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """
    return _gated(jax.nn.silu, gate, up)


def geglu(gate: Float[ArrayLike, "*S"], up: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """gelu(gate) * up with the exact GELU, multiplied before the one rounding.

    Reference: Shazeer, arXiv 2002.05202.
    """
    return _gated(exact_gelu, gate, up)


def reglu(gate: Float[ArrayLike, "*S"], up: Float[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """relu(gate) * up. Equal shapes and dtypes, kept.

    Reference: Shazeer, arXiv 2002.05202.
    """
    return _gated(rectified, gate, up)
