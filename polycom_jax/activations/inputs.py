"""What activations accept, and the dtype they compute in."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from polycom_jax._errors import InputError, require

EPS = 1e-6
"""The default eps, added to each mean under PolyNorm's roots, as in the paper's official code."""

EPS_RANGE = (1e-30, 1e30)
"""A smaller eps would drown in what CPUs flush to zero in float32 (1e-38)."""


def work_dtype(dtype: Any) -> Any:
    """The dtype that arithmetic on `dtype` runs in: float64 for float64, float32 for all others."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def in_work_dtype(f: Callable[..., Array], x: Array, *others: Array) -> Array:
    """f(x, *others) in the work dtype of `x`, rounded once, at the end, to the dtype of `x`."""
    dtype = work_dtype(x.dtype)
    return f(*(array.astype(dtype) for array in (x, *others))).astype(x.dtype)


def recomputed(f: Callable[..., Array], x: Array, *others: Array) -> Array:
    """`in_work_dtype`; the backward pass keeps the arguments alone, and computes f again."""
    policy = jax.checkpoint_policies.nothing_saveable
    lean = jax.checkpoint(partial(in_work_dtype, f), policy=policy, prevent_cse=False)
    return lean(x, *others)


def check_floating(name: str, x: ArrayLike) -> Array:
    """As an array; raises `InputError` unless its dtype is a real floating one."""
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"{name} of dtype {array.dtype} must be floating; convert it, for instance with"
            f" {name}.astype(jnp.float32)."
        )
    return array


def check_coeffs(coeffs: ArrayLike) -> Array:
    """As an array; raises `InputError` unless it is a floating vector of at least two."""
    array = check_floating("coeffs", coeffs)
    require(
        array.ndim == 1 and array.size >= 2,
        f"coeffs of shape {array.shape} must be a vector of order + 1 >= 2 coefficients, a_0 first;"
        " map over leading axes with jax.vmap.",
    )
    return array


def check_slope(slope: ArrayLike) -> Array:
    """As an array; raises `InputError` unless it is a floating scalar."""
    array = check_floating("slope", slope)
    require(array.ndim == 0, f"slope of shape {array.shape} must be a scalar.")
    return array


def check_row(name: str, x: ArrayLike, eps: float) -> Array:
    """As an array; raises `InputError` unless PolyNorm can take a mean over its last axis."""
    array = check_floating(name, x)
    require(
        array.ndim >= 1 and array.shape[-1] >= 1,
        f"{name} of shape {array.shape} must have a last axis of at least one element:"
        " PolyNorm's mean runs over it.",
    )
    check_eps(eps)
    return array


def check_eps(eps: float) -> None:
    """Raises `InputError` unless `eps` is a Python number in `EPS_RANGE`."""
    low, high = EPS_RANGE
    require(
        isinstance(eps, int | float) and low <= eps <= high,
        f"eps={eps!r} must be a Python number from {low} to {high}; the usual one is {EPS}.",
    )


def check_order(order: int) -> None:
    """Raises `InputError` unless `order` is an integer of at least 1."""
    require(
        isinstance(order, int) and not isinstance(order, bool) and order >= 1,
        f"order={order!r} must be an integer of at least 1; the paper's is 3.",
    )


def check_gate(gate: Array, up: ArrayLike) -> Array:
    """`up` as an array; raises `InputError` unless it agrees with `gate` in shape and dtype."""
    array = check_floating("up", up)
    require(
        gate.shape == array.shape and gate.dtype == array.dtype,
        f"gate {gate.dtype}{list(gate.shape)} and up {array.dtype}{list(array.shape)} must agree in"
        " shape and dtype: they are two projections of the same input.",
    )
    return array
