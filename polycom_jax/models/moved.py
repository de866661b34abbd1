"""Rows that change their places: gathers whose gradients are gathers.

JAX's gradient of a gather is a scatter that adds, which accelerators do slowly and in an order of
their own. Where the way back is known it is another gather.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def permute(
    x: Float[Array, "A ..."], take: Int[Array, " B"], give: Int[Array, " A"]
) -> Float[Array, "B ..."]:
    """y[b] = x[take[b]], and zero where take[b] is negative.

    `give` is the way back: give[a] is the place where row a went, negative if nowhere.
    """
    return _take(x, take)


permute.defvjp(
    lambda x, take, give: (_take(x, take), give),
    lambda give, dy: (_take(dy, give), None, None),
)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def spread(
    x: Float[Array, "N D"], take: Int[Array, " R"], give: Int[Array, " NK"], k: int
) -> Float[Array, "R D"]:
    """Every row k times, in other places: y[r] = x[take[r] // k], zero where take[r] is negative.

    The k copies of row n are numbered n k to n k + k - 1; give[c] is the place of copy c.
    """
    return _take(x, jnp.where(take < 0, -1, take // k))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def collect(
    y: Float[Array, "R D"], take: Int[Array, " R"], give: Int[Array, " NK"], k: int
) -> Float[Array, "N D"]:
    """The transpose of `spread`: each row is the sum of its k copies, in float32, rounded once."""
    copies = _take(y, give).reshape(-1, k, y.shape[-1])
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


def _take(x: Float[Array, "A ..."], index: Int[Array, " B"]) -> Float[Array, "B ..."]:
    # Without a bounds check: indices come from sorts, and negative ones are replaced.
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
