"""Normalising activations over groups of neighbouring features, in the work dtype.

Groups are scaled by a power of two before anything is squared. Where that makes the constant under
a root smaller than a normal number, the smallest normal number stands for it: beside anything else
that stands under the root it is nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polycom_jax._errors import require
from polycom_jax.activations.polynomial import scale_row
from polycom_jax.sharding import MeshAxes

X = Float[Array, "*S F"]
P = Float[Array, "..."]

EVONORM_GROUPS, EVONORM_EPS = 32, 1e-5

GDN_SIZE = 8
"""Channels in a group: each has as many weights."""

GDN_FLOOR = 1e-6


def evonorm_s0(x: X, v: P, gamma: P, beta: P, axis_name: MeshAxes = None) -> X:
    """gamma x sigma(v x) / sqrt(var + eps) + beta, var over each of 32 groups of features.

    Groups are whole on a shard, so `axis_name` tells how many there are.

    Raises:
        InputError: rows in more parts than groups, or in a number that does not divide these.
    """
    parts = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    require(
        EVONORM_GROUPS % parts == 0,
        f"evonorm_s0: the {parts} parts of a row must divide its {EVONORM_GROUPS} groups; choose"
        " mesh.tensor so.",
    )
    groups = EVONORM_GROUPS // parts
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    scale, mean = _scale_and_mean(grouped)
    z = x * _repeated(scale, x)
    variance = _variance(z.reshape(grouped.shape) - mean * scale)
    inv_std = jax.lax.rsqrt(variance + _at_least(EVONORM_EPS * scale * scale))
    return gamma * (z * _repeated(inv_std, x) * jax.nn.sigmoid(v * x)) + beta


def _variance(z: Float[Array, "*S G E"]) -> Float[Array, "*S G 1"]:
    """Over the last axis, in one pass: of numbers whose mean is nearly 0, so nothing cancels."""
    size = z.shape[-1]
    total, squares = _two_sums(z, z * z)
    return squares / size - jnp.square(total / size)


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


def _scale_and_mean(grouped: Array) -> tuple[Array, Array]:
    """What each group is scaled by (see `scale_row`), and its mean, up to rounding."""
    x = jax.lax.stop_gradient(grouped)
    zero = np.zeros((), x.dtype)
    largest, mean = _reduced(
        (jnp.abs(x), x / x.shape[-1]),
        (zero, zero),
        lambda a, b: (jnp.maximum(a[0], b[0]), a[1] + b[1]),
    )
    return scale_row(largest)[1], mean


def _reduced(terms: Any, start: Any, unite: Any) -> list[Array]:
    found = jax.lax.reduce(terms, start, unite, (terms[0].ndim - 1,))
    return [each[..., None] for each in found]


def gdn(x: X, beta: P, gamma: P, axis_name: MeshAxes = None) -> X:
    """x_i / sqrt(beta_i^2 + 1e-6 + sum_j gamma_ji^2 x_j^2), j in i's group of eight.

    gamma is [8, ..., F]: of channel i, what each of its group weighs. `axis_name` is not needed:
    groups are whole on a shard.
    """
    del axis_name
    groups = x.shape[-1] // GDN_SIZE
    grouped = (*x.shape[:-1], groups, GDN_SIZE)
    scale, _ = _scale_and_mean(x.reshape(grouped))
    z = x * _repeated(scale, x)
    squares = (z * z).reshape(grouped)
    weights = (gamma * gamma).reshape(GDN_SIZE, groups, GDN_SIZE)
    total = jnp.einsum("...gj,jgi->...gi", squares, weights, precision="highest")
    floor = _at_least((beta * beta + GDN_FLOOR) * _repeated(scale * scale, x))
    return z * jax.lax.rsqrt(total.reshape(x.shape) + floor)


def _repeated(each: Float[Array, "*S G 1"], x: X) -> X:
    """The number of each group at all of its features.

    What is computed for single features is left in rows: loops over a short last axis are slow.
    """
    grouped = (*each.shape[:-1], x.shape[-1] // each.shape[-2])
    return jnp.broadcast_to(each, grouped).reshape(x.shape)


def _at_least(x: Array) -> Array:
    """x, or the smallest normal number where x is less."""
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
