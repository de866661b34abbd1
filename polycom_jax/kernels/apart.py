"""A derivative that XLA computes where it is used, twice, and does not write to memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def apart(
    f: Callable[..., Array], params: Any, xs: Sequence[Array], twins: Sequence[Array]
) -> Array:
    """f(params, *xs), whose derivative in `xs` is shared out between `xs` and `twins`.

    A matrix product x = y w has two gradients, x' w^T and y^T x', and x' is what an activation's
    gradient is. Where that waits for a sum over the whole row, XLA cannot form it in the product
    before, so writes it and reads it twice; forming it in each of the two products instead costs
    nothing beside them. For that they need one each, which XLA must not find to be equal:

        xs = [dot(y, stop_gradient(w))],  twins = [dot(stop_gradient(y), w)]

    whose derivatives add up to that of x. `params` stands behind a barrier in the second.

    Args:
        f: elementwise in `xs` but for means over rows.
        params: what f's gradient depends on besides `xs`: a tree with at least one array.
        xs: arrays of the same values as `twins`.
        twins: only their tangents count.
    """
    del twins
    return f(params, *xs)


@apart.defjvp
def _rule(f: Callable[..., Array], primals: Any, tangents: Any) -> tuple[Array, Array]:
    params, xs, _ = primals
    dparams, dxs, dtwins = tangents
    out, change = jax.jvp(f, (params, *xs), (dparams, *dxs))
    hidden = jax.lax.optimization_barrier(params)
    _, other = jax.jvp(partial(f, hidden), tuple(xs), tuple(dtwins))
    return out, change + other
