"""PolyNorm and its two relatives for XLA's TPU backend: as in `xla`, but for each row's statistics.

The sums of x^2, x^4 ... are taken of the row as it is, so they need one reading and no maximum
before it. Whether a row has to be scaled, because its powers overflow, shows in the sums; then, and
only then, a conditional takes them again. A barrier keeps the sums out of the product before them,
which XLA would no longer write in place to the stack of what layers keep
(experiments/results/speed/README.md, "Row sums on TPUs").
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.kernels.poly_norm import moments, xla
from polycom_jax.kernels.poly_norm.relatives import with_relatives
from polycom_jax.kernels.poly_norm.row_stats import RowStats, row_stats
from polycom_jax.kernels.row_sums import sums_in_parts
from polycom_jax.kernels.sharded import features_are_unsharded


def row(primals: xla.Pair, *, eps: float, in_parts: bool, relu: bool = False) -> RowStats:
    """The scale of each row, and the inverse RMS of each power."""
    x, coeffs = primals
    dtype, order = work_dtype(x.dtype), coeffs.size - 1

    def wide(x: Array) -> Array:
        return jax.nn.relu(x.astype(dtype)) if relu else x.astype(dtype)

    def terms(x: Array) -> list[Array]:
        return moments.moment_terms(wide(x), order)

    def plain(terms: list[Array]) -> RowStats:
        return [jnp.sum(term, axis=-1, keepdims=True) for term in terms]

    return row_stats(
        jax.lax.optimization_barrier(x),
        order,
        eps,
        first=lambda x: sums_in_parts(terms, x) if in_parts else plain(terms(x)),
        again=lambda z: plain(moments.moment_terms(z, order)),
        wide=wide,
    )


_IN_PARTS, _AT_ONCE = (
    with_relatives(xla.value, xla.tangent, row=partial(row, in_parts=in_parts))
    for in_parts in (True, False)
)


def _version(index: int) -> Callable[..., Array]:
    """Rows are cut where no device holds a part of one: GSPMD would move the parts elsewhere."""

    def call(*arrays: Array, **static: Any) -> Array:
        versions = _IN_PARTS if features_are_unsharded() else _AT_ONCE
        return versions[index](*arrays, **static)

    return call


poly_norm, poly_relu_norm, poly_norm_glu = map(_version, range(3))
