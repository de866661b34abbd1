"""Rational functions whose denominator cannot vanish, in the work dtype."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

X = Float[Array, "*S"]

Coefficients = Array | Sequence[Array]
"""Read entry by entry; each is a number, or one a channel."""

Form = Literal["a", "b"]
"""The denominator: 1 + sum_i |b_i x^i|, or 1 + |sum_i b_i x^i|, i from 1."""


def rational(x: X, numerator: Coefficients, denominator: Coefficients, *, form: Form) -> X:
    """sum_i a_i x^i over the denominator of that form.

    The numerator's degree is one more than the denominator's. Where |x| > 1 both are polynomials in
    1/x, so no power of x overflows. A coefficient b_i of form a that is 0 has the slope of b_i > 0:
    with none it would stay there.
    """
    large = jnp.abs(x) > 1
    s = jnp.where(large, 1, x)
    t = jnp.where(large, 1 / jnp.where(large, x, 1), 1)
    top = _homogeneous(s, t, numerator)
    if form == "a":
        rest = [jnp.where(b < 0, -b, b) for b in denominator]
        below = _homogeneous(jnp.abs(s), jnp.abs(t), [jnp.ones_like(rest[0]), *rest])
    else:
        inner = _homogeneous(s, t, [jnp.zeros_like(denominator[0]), *denominator])
        below = jnp.abs(t) ** len(denominator) + jnp.abs(inner)
    return jnp.where(large, x, 1) * (top / below)


def _homogeneous(s: X, t: X, coefficients: Coefficients) -> X:
    """sum_i c_i s^i t^(n - i)."""
    degree = len(coefficients) - 1
    y, power = jnp.broadcast_to(coefficients[degree], s.shape), t
    for i in range(degree - 1, -1, -1):
        y = y * s + coefficients[i] * power
        power = power * t if i else power
    return y
