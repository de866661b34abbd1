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


@jax.custom_jvp
def tanh_softplus(x: X) -> X:
    """tanh(log(1 + e^x)): with e = e^-|x|, (1 + 2 e) / (1 + 2 e + 2 e^2), or of negative x
    (e^2 + 2 e) / (e^2 + 2 e + 2). Nothing cancels or overflows, in derivatives either."""
    _, _, above, below = _softplus_terms(x)
    return above / below


@tanh_softplus.defjvp
def _tanh_softplus_jvp(primals: tuple[X], tangents: tuple[X]) -> tuple[X, X]:
    positive, e, _, below = _softplus_terms(primals[0])
    slope = jnp.where(positive, e * e, e) * (4 + 4 * e) / (below * below)
    return tanh_softplus(*primals), slope * tangents[0]


def _softplus_terms(x: X) -> tuple[Array, X, X, X]:
    """x > 0, e^-|x|, and the quotient's two parts."""
    positive = x > 0
    e = jnp.exp(jnp.where(positive, -x, x))
    square = e * e
    above = jnp.where(positive, 1, square) + 2 * e
    return positive, e, above, above + jnp.where(positive, 2 * square, 2)


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
