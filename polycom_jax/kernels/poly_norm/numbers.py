"""The numbers of each row that PolyNorm needs, with no pass over memory for a maximum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import scale_row
from polycom_jax.kernels.poly_norm import rows

LARGEST = 2.0**80
"""Row sums of x^(2r) up to this are taken as they are: then |x^r| <= 2^40 (|x| <= 10,321 at order
3), and no sum overflows unless the cotangent is beyond 1e26. A row whose sum is larger has all rows
that the device holds read twice more."""

Numbers = list[Float[Array, "*S 1"]]


def numbers(
    x: Float[Array, "*S F"],
    order: int,
    eps: float,
    *,
    first: Callable[[Array], Numbers],
    again: Callable[[Array], Numbers],
    wide: Callable[[Array], Array] = lambda x: x,
) -> Numbers:
    """The scale of each row, and the gain of each power.

    Whether a row has to be scaled before its powers are formed shows in their sums; where one has,
    the sums are formed again, of scaled rows.

    Args:
        x: rows.
        order: of the polynomial.
        eps: under each root.
        first: row sums of wide(x)^2, ^4 ... ^(2 order).
        again: the same of rows that `wide` and a scale were applied to.
        wide: x in the work dtype. Inside of the conditional, so that XLA stores nothing wider than
            x, which it would pass to it.
    """

    def as_they_are(_x: Array, *sums: Array) -> Numbers:
        return [jnp.ones_like(sums[0]), *sums]

    def scaled(x: Array, *sums: Array) -> Numbers:
        z, scale = scale_row(wide(x))
        # Not for all rows alike: XLA's TPU backend copies an array, if it is the only one that a
        # branch reads, to the layout that it would like to have it in (libtpu 0.0.50.1).
        fits = sums[-1] <= LARGEST
        both = zip(as_they_are(x, *sums), [scale, *again(z)], strict=True)
        return [jnp.where(fits, plain, rescued) for plain, rescued in both]

    sums = first(x)
    with jax.named_scope("rescue"):
        scale, *sums = jax.lax.cond(jnp.all(sums[-1] <= LARGEST), as_they_are, scaled, x, *sums)
    return [scale, *rows.gains(rows.Sums(scale, sums), x.shape[-1], eps)]
