"""Products of tokens with a parameter, in the shape that each backend multiplies fastest."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.kernels.implementations import backend


def as_operand(x: Float[Array, "B T D"]) -> Float[Array, "*N D"]:
    """x with all tokens in one dimension, but for a TPU as it is.

    XLA's CPU backend is slow at gradients of products with three-dimensional operands; its TPU
    backend does not fuse over the reshape (experiments/results/speed/README.md, "Flattening").
    """
    return x if backend() == "tpu" else x.reshape(-1, x.shape[-1])


def project(x: Float[Array, "B T *K"], w: Array) -> Float[Array, "B T *M"]:
    """x times w [*K, *M]: contracted over all axes of x behind batch and sequence."""
    inner, contracted = math.prod(x.shape[2:]), x.ndim - 2
    y = jnp.dot(as_operand(x.reshape(*x.shape[:2], inner)), w.reshape(inner, -1))
    return y.reshape(*x.shape[:2], *w.shape[contracted:])
