"""Rows that change their places: gathers whose gradients are gathers.

JAX's gradient of a gather is a scatter that adds, which accelerators do slowly and in an order of
their own. Where the way back is known it is another gather.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.linear import linear_map


def permute(
    x: Float[Array, "A ..."], take: Int[Array, " B"], give: Int[Array, " A"], whole: bool = True
) -> Float[Array, "B ..."]:
    """y[b] = x[take[b]]; `give` is the way back: give[a] is the place where row a went.

    Unless `whole`, indices may be negative: no row comes from there, or the row goes nowhere. What
    comes from nowhere is zero.
    """

    def there(ways: Sequence[Array], moved: Sequence[Array]) -> Array:
        return _take(moved[0], ways[0], whole)

    def back(ways: Sequence[Array], dy: Array) -> Sequence[Array]:
        take, give = ways
        return [permute(dy, give, take, whole)]

    return linear_map(there, back, (take, give), (x,), _rows_like(x, take.size))


def dispatch(
    x: Float[Array, "N D"], take: Int[Array, " R"], give: Int[Array, " NK"], k: int
) -> Float[Array, "R D"]:
    """Every row k times, in other places: y[r] = x[take[r] // k].

    The k copies of row n are numbered n k to n k + k - 1; give[c] is the place of copy c.
    """

    def there(ways: Sequence[Array], moved: Sequence[Array]) -> Array:
        return _take(moved[0], ways[0] // k, whole=True)

    def back(ways: Sequence[Array], dy: Array) -> Sequence[Array]:
        take, give = ways
        return [combine(dy, take, give, k)]

    return linear_map(there, back, (take, give), (x,), _rows_like(x, take.size))


def combine(
    y: Float[Array, "R D"], take: Int[Array, " R"], give: Int[Array, " NK"], k: int
) -> Float[Array, "N D"]:
    """The transpose of `spread`: each row is the sum of its k copies, in float32, rounded once."""

    def there(ways: Sequence[Array], moved: Sequence[Array]) -> Array:
        copies = _take(moved[0], ways[1], whole=True)
        copies = copies.reshape(-1, k, copies.shape[-1])
        return jnp.sum(copies, axis=1, dtype=jnp.float32).astype(copies.dtype)

    def back(ways: Sequence[Array], dx: Array) -> Sequence[Array]:
        take, give = ways
        return [dispatch(dx, take, give, k)]

    return linear_map(there, back, (take, give), (y,), _rows_like(y, give.size // k))


def _rows_like(x: Float[Array, "A ..."], rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)


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
