"""Each row's scale and inverse RMS, with no pass over memory for a maximum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import scale_row
from polycom_jax.kernels.poly_norm import moments

LARGEST = 2.0**80
"""Row sums of x^(2r) up to this are taken as they are: then |x^r| <= 2^40 (|x| <= 10,321 at order
3), and no sum of F products with a cotangent overflows that is under 3e26 / sqrt(F)."""

RowStats = list[Float[Array, "*S 1"]]


def row_stats(
    x: Float[Array, "*S F"],
    order: int,
    eps: float,
    *,
    first: Callable[[Array], RowStats],
    again: Callable[[Array], RowStats],
    wide: Callable[[Array], Array] = lambda x: x,
) -> RowStats:
    """The scale of each row, and the inverse RMS of each power.

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

    The derivative is that of the definition, of scaled rows: JAX's own, of sums that overflowed,
    would be 0 times infinity.
    """

    def as_they_are(_x: Array, *sums: Array) -> RowStats:
        return [jnp.ones_like(sums[0]), *sums]

    def scaled(x: Array, *sums: Array) -> RowStats:
        z, scale = scale_row(wide(x))
        # Rows that fit keep their sums. Were x the only array read here, XLA's TPU backend would
        # copy it to the layout that this branch likes, in every layer.
        fits = sums[-1] <= LARGEST
        both = zip(as_they_are(x, *sums), [scale, *again(z)], strict=True)
        return [jnp.where(fits, plain, rescued) for plain, rescued in both]

    @jax.custom_jvp
    def found(x: Array) -> RowStats:
        # Only what is small leaves the conditional: XLA's CPU backend runs what is inside on one
        # core.
        sums = first(x)
        with jax.named_scope("rescue"):
            scale, *sums = jax.lax.cond(jnp.all(sums[-1] <= LARGEST), as_they_are, scaled, x, *sums)
        return [scale, *moments.inv_rms(moments.Sums(scale, sums), x.shape[-1], eps)]

    @found.defjvp
    def rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[RowStats, RowStats]:
        scale, *inv_rms = found(*primals)

        def plain(x: Array) -> RowStats:
            terms = moments.moment_terms(wide(x) * scale, order)
            sums = [jnp.sum(term, axis=-1, keepdims=True) for term in terms]
            return moments.inv_rms(moments.Sums(scale, sums), x.shape[-1], eps)

        change = jax.jvp(plain, primals, tangents)[1]
        return [scale, *inv_rms], [jnp.zeros_like(scale), *change]

    return found(x)
