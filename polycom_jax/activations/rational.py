"""Rational functions whose denominator cannot vanish, in the work dtype."""

from collections.abc import Sequence
from typing import Literal

import jax
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
    1/x, so no power of x overflows. Form a takes the `magnitude` of its coefficients.
    """
    large = jnp.abs(x) > 1
    z = jnp.where(large, reciprocal(jnp.where(large, x, 1)), x)
    top = _dot(numerator, _monomials(z, large, len(numerator) - 1))
    degree = len(denominator)
    if form == "a":
        one, *others = _monomials(jnp.abs(z), large, degree)
        below = one + _dot(denominator, others)
    else:
        one, *others = _monomials(z, large, degree)
        below = jnp.abs(one) + jnp.abs(_dot(denominator, others))
    return jnp.where(large, x, 1) * (top * reciprocal(below))


def magnitude(b: Float[Array, "..."]) -> Float[Array, "..."]:
    """|b|; a coefficient that is 0 has the slope of b > 0: with none it would stay there."""
    return jnp.where(b < 0, -b, b)


@jax.custom_jvp
def reciprocal(x: X) -> X:
    """1 / x; its derivative multiplies where JAX's own would divide again."""
    return 1 / x


@reciprocal.defjvp
def _reciprocal_jvp(primals: tuple[X], tangents: tuple[X]) -> tuple[X, X]:
    y = reciprocal(*primals)
    return y, -(y * y) * tangents[0]


def _monomials(z: X, large: Array, degree: int) -> list[X]:
    """z^i for i = 0 ... degree, or z^(degree - i) where x is large and z is 1/x.

    One by one, and not by Horner's scheme: the derivative by a coefficient is its monomial.
    """
    powers = [jnp.ones_like(z)]
    for _ in range(degree):
        powers.append(powers[-1] * z)
    return [jnp.where(large, powers[degree - i], powers[i]) for i in range(degree + 1)]


def _dot(coefficients: Coefficients, monomials: Sequence[X]) -> X:
    y = coefficients[0] * monomials[0]
    for i, monomial in enumerate(monomials[1:], 1):
        y = y + coefficients[i] * monomial
    return y
