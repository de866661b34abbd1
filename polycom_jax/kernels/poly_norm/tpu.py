"""PolyNorm and its two relatives for XLA's TPU backend: as in `xla`, the row numbers found anew.

The sums of x^2, x^4 ... are taken of the row as it is, so they need one reading and no maximum
before it. Whether a row has to be scaled, because its powers overflow, shows in the sums; then, and
only then, a conditional takes them again. XLA could form them while the product before writes x,
but a product with such by-products is no longer written in place to the stack of what layers keep:
the barrier keeps them apart. A layer of dense-1b on a v5p (16,384 tokens, its forward products
2.50 ms): 0.18 ms for the sums, against 0.43 and a copy of 0.54 with `xla` (libtpu 0.0.50.1, its own
estimate).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import scale_row
from polycom_jax.kernels.poly_norm import xla
from polycom_jax.kernels.poly_norm.cpu import LARGEST
from polycom_jax.kernels.recompute import recomputed
from polycom_jax.kernels.row_sums import sums_in_parts
from polycom_jax.kernels.sharded import rows_are_whole

Rows = list[Float[Array, "*S 1"]]


def _powers(x: Float[Array, "*S F"], order: int) -> list[Float[Array, "*S F"]]:
    """x^2, x^4 ... x^(2 order)."""
    terms = [x * x]
    for _ in range(order - 1):
        terms.append(terms[-1] * terms[0])
    return terms


def _sums(terms: list[Float[Array, "*S F"]]) -> Rows:
    return [jnp.sum(term, axis=-1, keepdims=True) for term in terms]


def _row(x: Float[Array, "*S F"], order: int, eps: float, cut: bool, relu: bool = False) -> Rows:
    dtype, width = work_dtype(x.dtype), x.shape[-1]

    def wide(x: Array) -> Array:
        # Past the barrier and inside the branch, where it is fused: nothing wider than x is stored.
        return jax.nn.relu(x.astype(dtype)) if relu else x.astype(dtype)

    def powers(x: Array) -> list[Array]:
        return _powers(wide(x), order)

    def as_they_are(_x: Array, *sums: Array) -> Rows:
        return [jnp.ones_like(sums[0]), *sums]

    def of_scaled(x: Array, *_sums_before: Array) -> Rows:
        z, scale = scale_row(wide(x))
        return [scale, *_sums(_powers(z, order))]

    x = jax.lax.optimization_barrier(x)
    sums = sums_in_parts(powers, x) if cut else _sums(powers(x))
    with jax.named_scope("rescue"):
        fits = jnp.all(sums[-1] <= LARGEST)
        scale, *sums = jax.lax.cond(fits, as_they_are, of_scaled, x, *sums)
    means = [s / width + eps * scale ** (2 * i) for i, s in enumerate(sums, start=1)]
    return [scale, *map(jax.lax.rsqrt, means)]


def row(primals: xla.Pair, *, eps: float, cut: bool) -> Rows:
    """The scale of each row, and the gain of each power."""
    x, coeffs = primals
    return _row(x, coeffs.size - 1, eps, cut)


def _relu_row(primals: xla.Pair, *, eps: float, cut: bool) -> Rows:
    x, coeffs = primals
    return _row(x, coeffs.size - 1, eps, cut, relu=True)


def _glu_row(primals: Any, *, eps: float, cut: bool) -> Rows:
    gate, _, coeffs = primals
    return _row(gate, coeffs.size - 1, eps, cut)


def _version(value: Any, tangent: Any, row: Callable[..., Rows]) -> Callable[..., Array]:
    """Rows are cut where no device holds a part of one: GSPMD would move what is cut elsewhere."""
    cut, uncut = (recomputed(value, tangent, row=partial(row, cut=c)) for c in (True, False))

    def call(*arrays: Array, **static: Any) -> Array:
        return (cut if rows_are_whole() else uncut)(*arrays, **static)

    return call


poly_norm = _version(xla.value, xla.tangent, row)
poly_relu_norm = _version(xla.relu_value, xla.relu_tangent, _relu_row)
poly_norm_glu = _version(xla.glu_value, xla.glu_tangent, _glu_row)
