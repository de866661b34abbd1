"""Normalising activations over groups of neighbouring features, in the work dtype.

Groups are scaled by a power of two before anything is squared. Where that makes the constant under
a root smaller than floating point has, the smallest normal number stands for it: it matters to
groups alone that are constant, or zero but for what does not count.
"""

import jax
import jax.numpy as jnp
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
    z, scale = scale_row(x.reshape(*x.shape[:-1], EVONORM_GROUPS // parts, -1))
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    normed = z * jax.lax.rsqrt(variance + _at_least_tiny(EVONORM_EPS * scale * scale))
    return gamma * (normed.reshape(x.shape) * jax.nn.sigmoid(v * x)) + beta


def gdn(x: X, beta: P, gamma: P, axis_name: MeshAxes = None) -> X:
    """x_i / sqrt(beta_i^2 + 1e-6 + sum_j gamma_ji^2 x_j^2), j in i's group of eight.

    gamma is [8, ..., F]: of channel i, what each of its group weighs. `axis_name` is not needed:
    groups are whole on a shard.
    """
    del axis_name
    groups = x.shape[-1] // GDN_SIZE
    z, scale = scale_row(x.reshape(*x.shape[:-1], groups, GDN_SIZE))
    own = (*[1] * (x.ndim - 1), groups, GDN_SIZE)
    weights = (gamma * gamma).reshape(GDN_SIZE, *own)
    squares = z * z
    total = sum(squares[..., j : j + 1] * weights[j] for j in range(GDN_SIZE))
    floor = (beta * beta + GDN_FLOOR).reshape(own) * (scale * scale)
    return (z * jax.lax.rsqrt(total + _at_least_tiny(floor))).reshape(x.shape)


def _at_least_tiny(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
