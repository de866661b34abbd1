"""Rows that ask what of PolyNorm matters: its gate and bias, its norm, the basis of its polynomial.

FLOPs as in `rows.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from polycom_jax.activations.bases import Basis, from_powers
from polycom_jax.activations.trainable import poly_erf, poly_tanh
from polycom_jax.custom import elementwise_row
from polycom_jax.kernels.poly_norm.variants import in_basis, motif3_glu, pnglu, poly_norm_l2
from polycom_jax.row import ActivationOptions, Declared, Parameter, Row

_POLYCOM = "Zhuo et al., ICLR 2025, arXiv 2411.03884"
_NORM: Any = {"over_rows": True, "takes_axis": True, "keywords": ("eps", "implementation")}


def coefficients(options: ActivationOptions) -> Parameter:
    """a_0 ... a_r as the options have them at the start, in every layer."""

    def start(key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
        del key, shape
        return jnp.asarray(options.stored_initial(), dtype)

    return Parameter(start, shape=(options.order + 1,))


def _in(basis: Basis) -> Callable[[ActivationOptions], Parameter]:
    """The same polynomial at the start as PolyNorm's, in that basis."""

    def weights(options: ActivationOptions) -> Parameter:
        return Parameter(tuple(from_powers(basis, options.stored_initial()).tolist()))

    return weights


def _each_power(start: float) -> Callable[[ActivationOptions], Parameter]:
    return lambda options: Parameter((start,) * options.order)


def _pointwise(f: Callable[..., Array], shifted: bool, **about: Any) -> Row:
    """A polynomial composition with a learned function of each power in the place of its norm."""
    learned: dict[str, Declared] = {"coeffs": coefficients, "alpha": _each_power(0.5)}
    if shifted:
        learned["shift"] = _each_power(0.0)
    return elementwise_row(f, learned, listed=True, **about)


def _basis_row(basis: Basis, names: str) -> Row:
    return Row(
        in_basis(basis),
        f"sum_k w_k P_k, P_k {names}, with N(x^i) for x^i; it starts as poly_norm",
        "the same functions as poly_norm in other coordinates: our own control",
        (4, 3),
        params=(("weights", _in(basis)),),
        **{**_NORM, "keywords": ("order", *_NORM["keywords"])},
    )


VARIANTS: Mapping[str, Row] = {
    "pnglu": Row(
        pnglu,
        "(|a_1| N(gate) + |a_2| N(gate^2)) up",
        "PNGLU, swiss-ai/Megatron-LM pull requests 124 and 129",
        (0, 12),
        gated=True,
        params=(("a", Parameter((0.2, 0.2))),),
        **_NORM,
    ),
    "motif3_glu": Row(
        motif3_glu,
        "(clip(bias, -1/2, 1/2) + sum_i sigma(w_i) N(gate^i)) up / 2; a set an expert."
        " Theirs clamps gate and up to 1e6 before",
        "Motif-3's PolyNorm, by ports of its code",
        (0, 16),
        gated=True,
        params=(
            ("weights", Parameter((1 / 3,) * 3, per="expert")),
            ("bias", Parameter(0.0, per="expert")),
        ),
        **_NORM,
    ),
    "poly_norm_l2": Row(
        poly_norm_l2,
        "a_0 + sum_i a_i x^i / sqrt(sum x^(2i) + eps); coeffs = a_0 ... a_r",
        f"{_POLYCOM}, as printed there; the official code divides by the RMS",
        (4, 3),
        params=(("coeffs", coefficients),),
        **_NORM,
    ),
    "poly_tanh": _pointwise(
        poly_tanh,
        shifted=False,
        formula="a_0 + sum_i a_i tanh(alpha_i x^i); coeffs = a_0 ... a_r",
        source="PolyNorm with DyT (Zhu et al., arXiv 2503.10622) in the place of the norm: our own",
        flops=(5, 1),
        slopes=(0, 0.79119),
    ),
    "poly_erf": _pointwise(
        poly_erf,
        shifted=True,
        formula="a_0 + sum_i a_i erf(alpha_i x^i + shift_i); coeffs = a_0 ... a_r",
        source="PolyNorm with Derf (arXiv 2512.10938) in the place of the norm: our own",
        flops=(6, 1),
        slopes=(0, 0.88076),
    ),
    "poly_norm_chebyshev": _basis_row("chebyshev", "Chebyshev's polynomials"),
    "poly_norm_hermite": _basis_row("hermite", "Hermite's (probabilists') polynomials"),
    "poly_norm_bernstein": _basis_row("bernstein", "Bernstein's polynomials of degree r"),
}
