"""Published variants of PolyNorm, as PolyNorm with other coefficients: its versions serve them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from polycom_jax._errors import require
from polycom_jax.activations.bases import Basis, to_powers
from polycom_jax.activations.inputs import EPS, EPS_RANGE, check_coeffs, check_row
from polycom_jax.kernels.poly_norm.api import FORMS, poly_norm, poly_norm_glu
from polycom_jax.kernels.poly_norm.moments import full_width
from polycom_jax.sharding import MeshAxes

MOTIF_BOUND, MOTIF_SCALE = 0.5, 0.5


def pnglu(
    gate: Float[ArrayLike, "*S F"], up: Float[ArrayLike, "*S F"], a: Array, **options: Any
) -> Float[Array, "*S F"]:
    """(|a_1| N(gate) + |a_2| N(gate^2) + ...) up, without a bias; options as of `poly_norm_glu`."""
    return poly_norm_glu(gate, up, _absolute(a), **options)


def _absolute(a: Array) -> Array:
    return jnp.concatenate([jnp.zeros(1, a.dtype), jnp.abs(a)])


def motif3_glu(
    gate: Float[ArrayLike, "*S F"],
    up: Float[ArrayLike, "*S F"],
    weights: Array,
    bias: Array,
    **options: Any,
) -> Float[Array, "*S F"]:
    """(clip(bias, -1/2, 1/2) + sum_i sigma(w_i) N(gate^i)) up / 2; options as of `poly_norm_glu`.

    A bias has half its gradient at a bound and none beyond, from where only decay brings it back.
    Motif-3 bounds biases of routed experts only, and clamps gate and up to 1e6 before, which this
    arithmetic does not need.
    """
    return poly_norm_glu(gate, up, _squashed(weights, bias), **options)


def _squashed(weights: Array, bias: Array) -> Array:
    bounded = jnp.clip(bias, -MOTIF_BOUND, MOTIF_BOUND)
    return MOTIF_SCALE * jnp.concatenate([bounded[None], jax.nn.sigmoid(weights)])


def poly_norm_l2(
    x: Float[ArrayLike, "*S F"],
    coeffs: Float[ArrayLike, " R+1"],
    *,
    eps: float = EPS,
    axis_name: MeshAxes = None,
    **options: Any,
) -> Float[Array, "*S F"]:
    """a_0 + sum_i a_i x^i / sqrt(sum(x^(2i)) + eps): by the length of a row of powers, not its RMS.

    That is PolyNorm with a_i / sqrt(F) and eps / F, F the width of whole rows.
    """
    x, coeffs = check_row("x", x, eps), check_coeffs(coeffs)
    coeffs, eps = _by_length(coeffs, eps, full_width(x.shape[-1], axis_name))
    return poly_norm(x, coeffs, eps=eps, axis_name=axis_name, **options)


def _by_length(coeffs: Array, eps: float, width: int) -> tuple[Array, float]:
    least = EPS_RANGE[0]
    require(
        eps / width >= least,
        f"eps={eps!r} must be at least {least * width:.3g} beside rows of width {width}: eps /"
        f" width stands beside means, where less than {least} is lost in float32.",
    )
    factors = jnp.full_like(coeffs, width**-0.5).at[0].set(1)
    return coeffs * factors, eps / width


@cache
def in_basis(basis: Basis) -> Callable[..., Array]:
    """PolyNorm whose coefficients are given in another basis, by `activations.bases`."""

    def function(
        x: Float[ArrayLike, "*S F"], weights: Float[Array, " R+1"], *, order: int, **options: Any
    ) -> Float[Array, "*S F"]:
        return poly_norm(x, _in_powers(basis, order, weights), **options)

    return function


def _in_powers(basis: Basis, order: int, weights: Array) -> Array:
    matrix = jnp.asarray(to_powers(basis, order), weights.dtype)
    return jnp.dot(matrix, weights, precision="highest")


def _from(basis: Basis) -> Callable[[Array], Array]:
    return lambda weights: _in_powers(basis, weights.size - 1, weights)


class Recast(NamedTuple):
    """A function of rows as one of the three operations of `api`.

    Attributes:
        operation: which one, of the same hidden arrays.
        coefficients: from the function's parameters to the operation's coefficients.
        by_length: whether powers are divided by their length, and not by their RMS.
    """

    operation: Callable[..., Array]
    coefficients: Callable[..., Array] = lambda coeffs: coeffs
    by_length: bool = False

    def numbers(
        self, parameters: Sequence[Array], eps: float, width: int
    ) -> tuple[Float[Array, " R+1"], float]:
        """The operation's coefficients and eps, for rows of this width."""
        coeffs = self.coefficients(*parameters)
        return _by_length(coeffs, eps, width) if self.by_length else (coeffs, eps)


RECASTS: Mapping[Callable[..., Array], Recast] = {
    **{operation: Recast(operation) for operation in FORMS},
    pnglu: Recast(poly_norm_glu, _absolute),
    motif3_glu: Recast(poly_norm_glu, _squashed),
    poly_norm_l2: Recast(poly_norm, by_length=True),
    **{in_basis(basis): Recast(poly_norm, _from(basis)) for basis in get_args(Basis)},
}
"""Function of rows -> its operation, for kernels that compute more than the activation."""
