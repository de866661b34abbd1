"""Normalising activations over groups of neighbouring features, in the work dtype.

Groups are scaled by a power of two before anything is squared. Where that makes the constant under
a root smaller than a normal number, the smallest normal number stands for it: beside anything else
that stands under the root it is nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax._errors import require
from polycom_jax.activations.group_layouts import InRows, Layout
from polycom_jax.sharding import MeshAxes

X = Float[Array, "*S F"]
P = Float[Array, "..."]

EVONORM_GROUPS, EVONORM_EPS = 32, 1e-5

GDN_SIZE = 8
"""Channels in a group: each has as many weights."""

GDN_FLOOR = 1e-6


def evonorm_s0(
    x: X, v: P, gamma: P, beta: P, axis_name: MeshAxes = None, *, layout: Layout = InRows
) -> X:
    """gamma x sigma(v x) / sqrt(var + eps) + beta, var over each of 32 groups of features.

    Groups are whole on a shard, so `axis_name` tells how many there are. The result does not depend
    on `layout`.

    Raises:
        InputError: rows in more parts than groups, or in a number that does not divide these.
    """
    parts = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    require(
        EVONORM_GROUPS % parts == 0,
        f"evonorm_s0: the {parts} parts of a row must divide its {EVONORM_GROUPS} groups; choose"
        " mesh.tensor so.",
    )
    lay = layout(x, EVONORM_GROUPS // parts)
    x, v, gamma, beta = lay.hidden(x), *map(lay.channels, (v, gamma, beta))
    scale, mean = lay.scale_and_mean(x)
    z = x * lay.repeated(scale)
    variance = _variance(lay, z - lay.repeated(mean * scale))
    inv_std = jax.lax.rsqrt(variance + _at_least(EVONORM_EPS * scale * scale))
    return lay.restored(gamma * (z * lay.repeated(inv_std) * jax.nn.sigmoid(v * x)) + beta)


def _variance(lay: Any, z: Array) -> Array:
    """Of each group, in one pass: of numbers whose mean is nearly 0, so nothing cancels.

    Of equal numbers rounding could leave less than 0.
    """
    total, squares = lay.two_sums(z, z * z)
    return jnp.maximum(squares / lay.size - jnp.square(total / lay.size), 0)


def gdn(x: X, beta: P, gamma: P, axis_name: MeshAxes = None, *, layout: Layout = InRows) -> X:
    """x_i / sqrt(beta_i^2 + 1e-6 + sum_j gamma_ji^2 x_j^2), j in i's group of eight.

    gamma is [8, ..., F]: of channel i, what each of its group weighs. `axis_name` is not needed:
    groups are whole on a shard. The result does not depend on `layout`.

    Raises:
        InputError: a part of a row that cuts a group.
    """
    del axis_name
    require(
        x.shape[-1] % GDN_SIZE == 0,
        f"gdn: {x.shape[-1]} channels, a row's or a device's part of it, must be whole groups of"
        f" {GDN_SIZE}; choose the hidden width, or mesh.tensor, so.",
    )
    lay = layout(x, x.shape[-1] // GDN_SIZE)
    x, beta = lay.hidden(x), lay.channels(beta)
    scale, _ = lay.scale_and_mean(x)
    z = x * lay.repeated(scale)
    total = lay.weighted_sums(z * z, gamma * gamma)
    floor = _at_least((beta * beta + GDN_FLOOR) * lay.repeated(scale * scale))
    return lay.restored(z * jax.lax.rsqrt(total + floor))


def _at_least(x: Array) -> Array:
    """x, or the smallest normal number where x is less."""
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
