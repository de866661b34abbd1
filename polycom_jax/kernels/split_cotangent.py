"""A cotangent that XLA computes in both products that use it, in place of writing it."""

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
    """f(params, *[product(y, w) for w in ws]), with separate derivatives in y and in w.

    A matrix product x = y w has two gradients, x' w^T and y^T x', where x' is the activation's
    gradient. Where x' needs a sum over the whole row, XLA cannot fuse it into the product that
    computes the cotangent of f, and writes it to memory for both gradients to read. Computed in
    each of the two products it costs nothing beside them. So that XLA does not merge the two again,

        df = f'(x) (dy w)  +  f'(x) (y dw),

    `params` stands behind a barrier in the second term. The rule is differentiated as it stands, so
    derivatives of every order are right in every mode. XLA computes y again in the gradient of w; a
    barrier against that gains little (experiments/results/speed/README.md).

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
