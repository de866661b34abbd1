"""Fixed element-wise functions of the literature, as controls, in the work dtype.

Each is stable for every finite input: no exponential or power is taken of what is not selected.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

X = Float[Array, "*S"]

OAI_LIMIT, OAI_SLOPE = 7.0, 1.702
"""Where gpt-oss clamps gate and up, and the slope within its logistic function."""

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
"""The fixed point of zero mean and unit variance (Klambauer et al., section 2)."""

POWLU_EXPONENT = 3.0


def negative(x: X) -> X:
    """min(x, 0), whose derivative at 0 is 1: that of the side which such a value belongs to."""
    return jnp.where(x > 0, 0, x)


def leaky_relu2(x: X) -> X:
    """leaky_relu(x)^2 with slope 1/2: x^2, or x^2 / 4 of negative x."""
    return jnp.where(x > 0, x * x, 0.25 * (x * x))


def tanh_softplus(x: X) -> X:
    """tanh(log(1 + e^x)): with e = e^-|x|, (1 + 2 e) / (1 + 2 e + 2 e^2), or of negative x
    (e^2 + 2 e) / (e^2 + 2 e + 2). Nothing cancels, and derivatives divide by small powers alone."""
    positive = x > 0
    e = jnp.exp(jnp.where(positive, -x, x))
    first, last = jnp.where(positive, 1, e * e), jnp.where(positive, e * e, 1)
    n = first + 2 * e
    return n / (n + 2 * last)


def mish(x: X) -> X:
    """x tanh(softplus(x))."""
    return x * tanh_softplus(x)


def softplus(x: X) -> X:
    """log(1 + e^x)."""
    return jax.nn.softplus(x)


def elu(x: X) -> X:
    """x, or exp(x) - 1 of negative x."""
    return jnp.where(x > 0, x, jnp.expm1(negative(x)))


def selu(x: X) -> X:
    """ELU, scaled on either side."""
    return SELU_SCALE * jnp.where(x > 0, x, SELU_ALPHA * jnp.expm1(negative(x)))


def bilinear(gate: X, up: X) -> X:
    """gate times up."""
    return gate * up


def relu2_glu(gate: X, up: X) -> X:
    """relu(gate)^2 up."""
    positive = jnp.maximum(gate, 0)
    return positive * (positive * up)  # a square alone may overflow


def silu2_glu(gate: X, up: X) -> X:
    """silu(gate)^2 up."""
    y = gate * jax.nn.sigmoid(gate)
    return y * (y * up)  # a square alone may overflow


def swiglu_oai(gate: X, up: X) -> X:
    """gpt-oss' SwiGLU: both clamped, and one added to up. What is clamped has no gradient."""
    gate, up = jnp.minimum(gate, OAI_LIMIT), jnp.clip(up, -OAI_LIMIT, OAI_LIMIT)
    return gate * jax.nn.sigmoid(OAI_SLOPE * gate) * (up + 1)


def powlu(gate: X, up: X) -> X:
    """u g^(m / (sqrt(g) + 1)) sigma(g) of positive gates, u silu(g) of others; m = 3."""
    large = gate > 1e-12  # what is smaller has a cube of 0, and an infinite slope of its root
    positive = jnp.where(large, gate, 1)
    power = jnp.exp(POWLU_EXPONENT / (jnp.sqrt(positive) + 1) * jnp.log(positive))
    return jnp.where(large, power, negative(gate)) * jax.nn.sigmoid(gate) * up
