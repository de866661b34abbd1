"""A derivative that XLA computes where it is used, twice, and does not write to memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from polycom_jax.kernels.checkpoint_names import checkpoint_as

Product = Callable[[Any, Any], Array]
"""product(y, w): linear in y and in w."""


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def split_cotangent(
    f: Callable[..., Array], product: Product, params: Any, y: Array, ws: Sequence[Array]
) -> Array:
    """f(params, *[product(y, w) for w in ws]), whose derivatives in y and in w stay apart.

    A matrix product x = y w has two gradients, x' w^T and y^T x', and x' is what an activation's
    gradient is. Where that waits for a sum over the whole row, XLA cannot form it in the product
    before, so writes it and reads it twice; forming it in each of the two products instead costs
    nothing beside them. For that they need one each, which XLA must not find to be equal:

        df = f'(x) (dy w)  +  f'(x) (y dw),

    and `params` stands behind a barrier in the second. All of it is differentiated again as it
    stands, so derivatives of every order are right in every mode.

    Args:
        f: elementwise in the products but for means over rows.
        product: what makes them.
        params: what f's gradient depends on besides: a tree with at least one array.
        y: what is multiplied.
        ws: by these.
    """
    return f(params, *[product(y, w) for w in ws])


@split_cotangent.defjvp
def _rule(
    f: Callable[..., Array], product: Product, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    params, y, ws = primals
    dparams, dy, dws = tangents
    xs = [checkpoint_as("product", product(y, w)) for w in ws]
    out, change = jax.jvp(f, (params, *xs), (dparams, *[product(dy, w) for w in ws]))
    hidden = jax.lax.optimization_barrier(params)
    _, other = jax.jvp(partial(f, hidden), tuple(xs), tuple(product(y, dw) for dw in dws))
    return out, change + other
