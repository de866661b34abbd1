"""Rows that change their places: gathers whose gradients are gathers.

JAX's gradient of a gather is a scatter that adds, which accelerators do slowly and in an order of
their own. Where the way back is known it is another gather.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def permute(
    x: Float[Array, "A ..."], take: Int[Array, " B"], give: Int[Array, " A"], whole: bool = True
) -> Float[Array, "B ..."]:
    """y[b] = x[take[b]]; `give` is the way back: give[a] is the place where row a went.

    Unless `whole`, indices may be negative: no row comes from there, or the row goes nowhere. What
    comes from nowhere is zero.
    """
    return _take(x, take, whole)


def _permute_forward(x: Array, take: Array, give: Array, whole: bool) -> tuple[Array, Array]:
    return _take(x, take, whole), give


def _permute_backward(whole: bool, give: Array, dy: Array) -> tuple[Array, None, None]:
    return _take(dy, give, whole), None, None


permute.defvjp(_permute_forward, _permute_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def spread(
    x: Float[Array, "N D"], take: Int[Array, " R"], give: Int[Array, " NK"], k: int
) -> Float[Array, "R D"]:
    """Every row k times, in other places: y[r] = x[take[r] // k].

    The k copies of row n are numbered n k to n k + k - 1; give[c] is the place of copy c.
    """
    return _take(x, take // k, whole=True)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def collect(
    y: Float[Array, "R D"], take: Int[Array, " R"], give: Int[Array, " NK"], k: int
) -> Float[Array, "N D"]:
    """The transpose of `spread`: each row is the sum of its k copies, in float32, rounded once."""
    copies = _take(y, give, whole=True).reshape(-1, k, y.shape[-1])
    return jnp.sum(copies, axis=1, dtype=jnp.float32).astype(y.dtype)


def _spread_forward(x: Array, take: Array, give: Array, k: int) -> tuple[Array, Any]:
    return spread(x, take, give, k), (take, give)


def _spread_backward(k: int, kept: Any, dy: Array) -> tuple[Array, None, None]:
    return collect(dy, *kept, k), None, None


def _collect_forward(y: Array, take: Array, give: Array, k: int) -> tuple[Array, Any]:
    return collect(y, take, give, k), (take, give)


def _collect_backward(k: int, kept: Any, dx: Array) -> tuple[Array, None, None]:
    return spread(dx, *kept, k), None, None


spread.defvjp(_spread_forward, _spread_backward)
collect.defvjp(_collect_forward, _collect_backward)


def _take(x: Float[Array, "A ..."], index: Int[Array, " B"], whole: bool) -> Array:
    # Without a bounds check: indices come from sorts.
    if whole:
        return x.at[index].get(mode="promise_in_bounds")
    rows = x.at[jnp.maximum(index, 0)].get(mode="promise_in_bounds")
    there = (index >= 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(there, rows, jnp.zeros((), x.dtype))


def inverse(order: Int[Array, " R"]) -> Int[Array, " R"]:
    """The permutation that undoes `order`."""
    return (
        jnp.zeros_like(order)
        .at[order]
        .set(
            jnp.arange(order.size, dtype=order.dtype), unique_indices=True, mode="promise_in_bounds"
        )
    )
