"""Element-wise functions of the literature that learn, in the work dtype: f(x, **parameters).

A parameter that must be positive is stored as what softplus makes it of. Each is stable for every
finite input.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.fixed import negative, tanh_softplus

X = Float[Array, "*S"]
P = Float[Array, "..."]
Vector = Array | Sequence[Array]
"""Read entry by entry."""

XIELU_BETA = 0.5

LEAST_REACH = 12
"""Log of the least magnitude at which an x under powers may be clipped, to base 2."""


def inverse_softplus(y: float) -> float:
    """What softplus makes y of."""
    return math.log(math.expm1(y))


def xielu(x: X, alpha_p: P, alpha_n: P) -> X:
    """p x^2 + b x, or n (e^x - 1 - x) + b x of negative x; p and n - b by softplus, b = 1/2."""
    p, n = jax.nn.softplus(alpha_p), XIELU_BETA + jax.nn.softplus(alpha_n)
    return jnp.where(x > 0, (p * x) * x, n * expm1_less_x(negative(x))) + XIELU_BETA * x


def xiep(x: X, alpha_p: P, alpha_n: P, alpha_3: P) -> X:
    """xIELU, and a cube of positive x: p x^2 + q x^3 + b x; q by softplus."""
    p, n = jax.nn.softplus(alpha_p), XIELU_BETA + jax.nn.softplus(alpha_n)
    positive = (p + jax.nn.softplus(alpha_3) * x) * x * x
    return jnp.where(x > 0, positive, n * expm1_less_x(negative(x))) + XIELU_BETA * x


def expm1_less_x(x: X) -> X:
    """e^x - 1 - x of x <= 0; by its series where the difference would cancel."""
    near = jnp.where(x > -0.2, x, 0)
    series = 1 / 720 + near * (1 / 5040)
    for count in (120, 24, 6, 2):
        series = 1 / count + near * series
    return jnp.where(x > -0.2, near * near * series, jnp.expm1(x) - x)


def xiprelu(x: X, alpha_p: P, alpha_n: P) -> X:
    """p x^2 + b x, or n x^2 + b x of negative x; p and n by softplus, b = 1/2."""
    alpha = jnp.where(x > 0, jax.nn.softplus(alpha_p), jax.nn.softplus(alpha_n))
    return (alpha * x) * x + XIELU_BETA * x


def prelu(x: X, slope: P) -> X:
    """x, or slope x of negative x; the derivative at 0 is the slope."""
    return jnp.where(x > 0, x, slope * x)


def swish(x: X, beta: P) -> X:
    """x sigma(beta x)."""
    return x * jax.nn.sigmoid(beta * x)


def parametric_mish(x: X, beta: P) -> X:
    """x tanh(softplus(beta x))."""
    return x * tanh_softplus(beta * x)


def xsilu(x: X, alpha: P) -> X:
    """x (sigma(x) (1 + 2 alpha) - alpha): SiLU with the gate's range widened by alpha."""
    return x * (jax.nn.sigmoid(x) * (1 + 2 * alpha) - alpha)


def xgelu(x: X, alpha: P) -> X:
    """x (Phi(x) (1 + 2 alpha) - alpha): GELU with the gate's range widened by alpha."""
    phi = 0.5 * jax.lax.erfc(-math.sqrt(0.5) * x)
    return x * (phi * (1 + 2 * alpha) - alpha)


def xatlu(x: X, alpha: P) -> X:
    """x ((1/2 + atan(x) / pi) (1 + 2 alpha) - alpha).

    Where x is clipped, lest the gate be flushed to zero, their product is -1 / pi in float64, too.
    """
    near = jnp.where(x > -(2.0**30), x, -(2.0**30))
    return near * (_angle(near) * ((1 + 2 * alpha) / math.pi)) - alpha * x


@jax.custom_jvp
def _angle(x: X) -> X:
    """pi / 2 + atan(x), which is -atan(1 / x) of negative x, where the sum would cancel."""
    low = x < -1
    angle = jnp.arctan(jnp.where(low, 1 / x, x))
    return jnp.where(low, -angle, angle + math.pi / 2)


_angle.defjvps(lambda t, _y, x: t / (1 + x * x))


def asqu(x: X, beta: P) -> X:
    """x^2, or beta x^2 of negative x."""
    return x * jnp.where(x > 0, x, beta * x)


def crrelu(x: X, epsilon: P) -> X:
    """relu(x) + epsilon x exp(-x^2 / 2)."""
    near = jnp.clip(x, -64, 64)  # beyond, the exponential is 0 in float64, too
    return jnp.maximum(x, 0) + epsilon * (x * jnp.exp(-0.5 * (near * near)))


def srelu(x: X, t_l: P, a_l: P, t_r: P, a_r: P) -> X:
    """x between t_l and t_r; beyond, lines of slope a_l and a_r that go on from there."""
    right, left = t_r + a_r * (x - t_r), t_l + a_l * (x - t_l)
    return jnp.where(x >= t_r, right, jnp.where(x <= t_l, left, x))


def combination(x: X, c: Vector) -> X:
    """c_0 x + c_1 relu(x) + c_2 tanh(x) + c_3 silu(x)."""
    return (c[0] + c[3] * jax.nn.sigmoid(x)) * x + c[1] * jnp.maximum(x, 0) + c[2] * jnp.tanh(x)


def series(x: X, a: Vector, b: Vector) -> X:
    """sum_i silu(a_i x + b_i)."""
    return reduce(add, [_silu(a[i] * x + b[i]) for i in range(len(a))])


@jax.custom_jvp
def _silu(x: X) -> X:
    """x sigma(x) of numbers that may have overflowed: below, it is 0 in float64, too."""
    near = jnp.maximum(x, -1000)
    return near * jax.nn.sigmoid(near)


@_silu.defjvp
def _silu_jvp(primals: tuple[X], tangents: tuple[X]) -> tuple[X, X]:
    near = jnp.maximum(primals[0], -1000)
    gate = jax.nn.sigmoid(near)
    return _silu(*primals), gate * (1 + near * (1 - gate)) * tangents[0]


@jax.custom_jvp
def erf(x: X) -> X:
    """The error function; its derivative is computed as it stands, in a few operations.

    JAX's own corrects the rounding of x^2, of which nothing is left beside the largest derivatives.
    """
    return jax.lax.erf(x)


@erf.defjvp
def _erf_jvp(primals: tuple[X], tangents: tuple[X]) -> tuple[X, X]:
    near = jnp.clip(primals[0], -28, 28)  # beyond, the exponential is 0 in float64, too
    return erf(*primals), (2 / math.sqrt(math.pi)) * jnp.exp(-(near * near)) * tangents[0]


@jax.custom_jvp
def tanh(x: X) -> X:
    """The hyperbolic tangent; its derivative is formed without 1 - tanh^2, which cancels."""
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_jvp(primals: tuple[X], tangents: tuple[X]) -> tuple[X, X]:
    double = 2 * primals[0]
    slope = 4 * jax.nn.sigmoid(double) * jax.nn.sigmoid(-double)
    return tanh(*primals), slope * tangents[0]


def dyt(x: X, alpha: P, weight: P, bias: P) -> X:
    """weight tanh(alpha x) + bias."""
    return weight * tanh(alpha * x) + bias


def derf(x: X, alpha: P, shift: P, weight: P, bias: P) -> X:
    """weight erf(alpha x + shift) + bias."""
    return weight * erf(alpha * x + shift) + bias


def poly_tanh(x: X, coeffs: Vector, alpha: Vector) -> X:
    """a_0 + sum_i a_i tanh(alpha_i x^i)."""
    return _of_powers(x, coeffs, lambda power, i: jnp.tanh(alpha[i] * power))


def poly_erf(x: X, coeffs: Vector, alpha: Vector, shift: Vector) -> X:
    """a_0 + sum_i a_i erf(alpha_i x^i + shift_i)."""
    return _of_powers(x, coeffs, lambda power, i: erf(alpha[i] * power + shift[i]))


def _of_powers(x: X, coeffs: Vector, rho: Callable[[X, int], X]) -> X:
    """a_0 + sum_i a_i rho(x^i, i - 1), rho flat where x is clipped lest its powers overflow, or a
    power of high order is, which would leave little of x."""
    order, bits = len(coeffs) - 1, 0.75 * jnp.finfo(x.dtype).maxexp
    reach = max(bits / order, LEAST_REACH)
    z = jnp.clip(x, -(2.0**reach), 2.0**reach)
    y, power = coeffs[0] + coeffs[1] * rho(z, 0), z
    for i in range(2, order + 1):
        power = power * z
        if i * LEAST_REACH > bits:
            power = jnp.clip(power, -(2.0**bits), 2.0**bits)
        y = y + coeffs[i] * rho(power, i - 1)
    return y
