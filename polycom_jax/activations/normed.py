"""Baselines followed by an RMSNorm: what tells PolyNorm's polynomial from its normalisation.

Without a learned scale, as PolyNorm's own norms have none. Like the baselines they compute in the
work dtype, round once, and keep nothing for the backward pass but their inputs.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from polycom_jax.activations.classic import Elementwise, exact_gelu
from polycom_jax.activations.inputs import EPS, check_gate, check_row, recomputed
from polycom_jax.activations.polynomial import scale_row
from polycom_jax.activations.rectifier import squared_relu
from polycom_jax.sharding import MeshAxes


def unit_rms(
    y: Float[Array, "*S F"], eps: float, axis_name: MeshAxes = None
) -> Float[Array, "*S F"]:
    """y / sqrt(mean(y^2) + eps) over the last axis, in y's dtype; no square overflows.

    The mean runs over whole rows also where `axis_name` splits them.
    """
    z, scale = scale_row(y)
    if axis_name is not None:
        scale = jax.lax.pmin(jax.lax.stop_gradient(scale), axis_name)
        z = y * scale
    mean = jnp.mean(jnp.square(z), axis=-1, keepdims=True)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
    return z * jax.lax.rsqrt(mean + eps * jnp.square(scale))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _normed(
    f: Elementwise, eps: float, axis_name: MeshAxes, x: Array, *factors: Array
) -> Float[Array, "*S F"]:
    """unit_rms(f(x) times the factors)."""

    def value(x: Array, *factors: Array) -> Array:
        return unit_rms(math.prod(factors, start=f(x)), eps, axis_name)

    return recomputed(value, x, *factors)


def gelu_norm(
    x: Float[ArrayLike, "*S F"], *, eps: float = EPS, axis_name: MeshAxes = None
) -> Float[Array, "*S F"]:
    """norm(gelu(x)), norm(u) = u / sqrt(mean(u^2) + eps) over the last axis.

    Args:
        x: any shape of rank 1 or more, any floating dtype, both of which the result has too.
        eps: a Python number, added to the mean.
        axis_name: inside `jax.shard_map`, the mesh axis that splits rows.

    Raises:
        InputError: an array that is not floating, no last axis or an empty one, or eps out of
            range.
    """
    return _normed(exact_gelu, eps, axis_name, check_row("x", x, eps))


def relu2_norm(
    x: Float[ArrayLike, "*S F"], *, eps: float = EPS, axis_name: MeshAxes = None
) -> Float[Array, "*S F"]:
    """norm(relu(x)^2); arguments, result and errors are those of `gelu_norm`.

    The square itself must be finite in the work dtype: |x| up to 1.8e19 in float32.
    """
    return _normed(squared_relu, eps, axis_name, check_row("x", x, eps))


def swiglu_norm(
    gate: Float[ArrayLike, "*S F"],
    up: Float[ArrayLike, "*S F"],
    *,
    eps: float = EPS,
    axis_name: MeshAxes = None,
) -> Float[Array, "*S F"]:
    """norm(silu(gate) * up), for two arrays of equal shape and dtype; else as `gelu_norm`."""
    gate = check_row("gate", gate, eps)
    return _normed(jax.nn.silu, eps, axis_name, gate, check_gate(gate, up))
