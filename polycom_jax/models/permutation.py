"""Rows in another order: gathers whose gradients are gathers.

JAX's gradient of a gather is a scatter that adds, which accelerators do slowly and in no fixed
order. Where the inverse order is given, it is another gather.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.linear import linear_map


def permute(
    x: Float[Array, "A ..."],
    source: Int[Array, " B"],
    destination: Int[Array, " A"],
    complete: bool = True,
) -> Float[Array, "B ..."]:
    """y[b] = x[source[b]], where row a of x becomes row destination[a] of y.

    Unless `complete`, indices may be negative: row b of y has no source and is zero, or row a of x
    is left out.
    """

    def forward(indices: Sequence[Array], operands: Sequence[Array]) -> Array:
        return _take(operands[0], indices[0], complete)

    def backward(indices: Sequence[Array], dy: Array) -> Sequence[Array]:
        source, destination = indices
        return [permute(dy, destination, source, complete)]

    return linear_map(forward, backward, (source, destination), (x,), _rows_like(x, source.size))


def dispatch(
    x: Float[Array, "N D"], source: Int[Array, " R"], destination: Int[Array, " NK"], k: int
) -> Float[Array, "R D"]:
    """k copies of every row, permuted: y[r] = x[source[r] // k].

    The k copies of row n are numbered n k to n k + k - 1; copy c becomes row destination[c] of y.
    """

    def forward(indices: Sequence[Array], operands: Sequence[Array]) -> Array:
        return _take(operands[0], indices[0] // k, complete=True)

    def backward(indices: Sequence[Array], dy: Array) -> Sequence[Array]:
        source, destination = indices
        return [combine(dy, source, destination, k)]

    return linear_map(forward, backward, (source, destination), (x,), _rows_like(x, source.size))


def combine(
    y: Float[Array, "R D"], source: Int[Array, " R"], destination: Int[Array, " NK"], k: int
) -> Float[Array, "N D"]:
    """The transpose of `dispatch`: the sum of each row's k copies, in float32, rounded once."""

    def forward(indices: Sequence[Array], operands: Sequence[Array]) -> Array:
        copies = _take(operands[0], indices[1], complete=True)
        copies = copies.reshape(-1, k, copies.shape[-1])
        return jnp.sum(copies, axis=1, dtype=jnp.float32).astype(copies.dtype)

    def backward(indices: Sequence[Array], dx: Array) -> Sequence[Array]:
        source, destination = indices
        return [dispatch(dx, source, destination, k)]

    like = _rows_like(y, destination.size // k)
    return linear_map(forward, backward, (source, destination), (y,), like)


def _rows_like(x: Float[Array, "A ..."], rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)


def _take(x: Float[Array, "A ..."], index: Int[Array, " B"], complete: bool) -> Array:
    # Without a bounds check: indices come from sorts.
    if complete:
        return x.at[index].get(mode="promise_in_bounds")
    rows = x.at[jnp.maximum(index, 0)].get(mode="promise_in_bounds")
    has_source = (index >= 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(has_source, rows, jnp.zeros((), x.dtype))


def inverse(order: Int[Array, " R"]) -> Int[Array, " R"]:
    """The permutation that undoes `order`."""
    places = jnp.arange(order.size, dtype=order.dtype)
    zeros = jnp.zeros_like(order)
    return zeros.at[order].set(places, unique_indices=True, mode="promise_in_bounds")
