"""How a hidden array lies while something is taken over its groups of neighbouring features.

Both layouts offer the same methods, so that a formula over groups is written once.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import scale_row

MATRIX_UNIT = 128
"""Rows and columns that a TPU multiplies at once; smaller matrices are filled up with zeros."""


class InRows:
    """Features stay in rows [*S, F], and what is of a group is [*S, G, 1].

    Loops over a short last axis are slow, so what is computed for single features is left in rows.
    """

    def __init__(self, x: Float[Array, "*S F"], groups: int) -> None:
        self.shape, self.size = x.shape, x.shape[-1] // groups
        self.grouped = (*x.shape[:-1], groups, self.size)

    def hidden(self, x: Float[Array, "*S F"]) -> Array:
        """A hidden array in this layout."""
        return x

    def channels(self, numbers: Float[Array, "*P F"]) -> Array:
        """Numbers of channels, which broadcast against hidden arrays in this layout."""
        return numbers

    def repeated(self, each: Array) -> Array:
        """The number of each group, at all of its features."""
        return jnp.broadcast_to(each, self.grouped).reshape(self.shape)

    def scale_and_mean(self, x: Array) -> tuple[Array, Array]:
        """What each group is scaled by (see `scale_row`), and its mean, up to rounding.

        Results do not depend on them: their gradients are zero.
        """
        x = jax.lax.stop_gradient(x).reshape(self.grouped)
        zero = np.zeros((), x.dtype)
        largest, mean = _reduced(
            (jnp.abs(x), x / x.shape[-1]),
            (zero, zero),
            lambda a, b: (jnp.maximum(a[0], b[0]), a[1] + b[1]),
        )
        return scale_row(largest)[1], mean

    def two_sums(self, a: Array, b: Array) -> list[Array]:
        """Of both arrays over each group."""
        return _two_sums(a.reshape(self.grouped), b.reshape(self.grouped))

    def weighted_sums(self, x: Array, weights: Float[Array, "E *P F"]) -> Array:
        """sum_j weights[j, i] x_j at each feature i, j running over i's group."""
        *_, groups, size = self.grouped
        weights = weights.reshape(size, groups, size)
        each = x.reshape(self.grouped)
        total = jnp.einsum("...gj,jgi->...gi", each, weights, precision="highest")
        return total.reshape(self.shape)

    def restored(self, y: Array) -> Float[Array, "*S F"]:
        """An array of this layout as the hidden array came."""
        return y


class InColumns:
    """All tokens lie along the last axis: [G, E, N], and what is of a group is [G, 1, N].

    A TPU fills a last axis up to 128, so groups there would move mostly padding.
    """

    def __init__(self, x: Float[Array, "*S F"], groups: int) -> None:
        self.shape, self.size = x.shape, x.shape[-1] // groups
        self.grouped = (groups, self.size)

    def hidden(self, x: Float[Array, "*S F"]) -> Array:
        """A hidden array in this layout."""
        tokens = x.size // max(x.shape[-1], 1)
        return x.reshape(tokens, x.shape[-1]).T.reshape(*self.grouped, tokens)

    def channels(self, numbers: Float[Array, "*P F"]) -> Array:
        """Numbers of channels, which broadcast against hidden arrays in this layout."""
        return numbers.reshape(*self.grouped, 1)

    def repeated(self, each: Array) -> Array:
        """The number of each group, at all of its features."""
        return each

    def scale_and_mean(self, x: Array) -> tuple[Array, Array]:
        """What each group is scaled by (see `scale_row`), and its mean, up to rounding.

        Results do not depend on them: their gradients are zero.
        """
        x = jax.lax.stop_gradient(x)
        largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
        mean = jnp.sum(x / x.shape[1], axis=1, keepdims=True)
        return scale_row(largest[..., None])[1][..., 0], mean

    def two_sums(self, a: Array, b: Array) -> list[Array]:
        """Of both arrays over each group."""
        return [jnp.sum(t, axis=1, keepdims=True) for t in (a, b)]

    def weighted_sums(self, x: Array, weights: Float[Array, "E *P F"]) -> Array:
        """sum_j weights[j, i] x_j at each feature i, j running over i's group."""
        blocks = _diagonal_blocks(weights, *self.grouped)
        parts = x.reshape(*blocks.shape[:2], x.shape[-1])
        return jnp.einsum("bji,bjn->bin", blocks, parts, precision="highest").reshape(x.shape)

    def restored(self, y: Array) -> Float[Array, "*S F"]:
        """An array of this layout as the hidden array came."""
        return y.reshape(self.shape[-1], -1).T.reshape(self.shape)


Layout = type[InRows] | type[InColumns]


def _diagonal_blocks(
    weights: Float[Array, "E *P F"], groups: int, size: int
) -> Float[Array, "B K K"]:
    """Weights of as many groups as fill a matrix unit, in matrices that are 0 between groups."""
    whole = math.gcd(groups, max(MATRIX_UNIT // size, 1))
    each = weights.reshape(size, -1, whole, size).swapaxes(0, 1)
    same = jnp.eye(whole, dtype=weights.dtype)[None, :, None, :, None]
    return (each[:, None] * same).reshape(-1, whole * size, whole * size)


@jax.custom_jvp
def _two_sums(a: Array, b: Array) -> list[Array]:
    """Over the last axis, at once: XLA's CPU backend is slow at single sums of short rows."""
    zero = np.zeros((), a.dtype)
    return _reduced((a, b), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]))


@_two_sums.defjvp
def _two_sums_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[list[Array], list[Array]]:
    return _two_sums(*primals), [jnp.sum(t, axis=-1, keepdims=True) for t in tangents]


def _reduced(terms: Any, start: Any, unite: Any) -> list[Array]:
    found = jax.lax.reduce(terms, start, unite, (terms[0].ndim - 1,))
    return [each[..., None] for each in found]
