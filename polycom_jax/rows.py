"""The rows of the table: a new activation is a function in `activations` and an entry here.

Tests, models, Flax modules and programs all read it; the contract of `polycom_jax.testing` tests a
new entry without being told of it.
"""

from collections.abc import Mapping
from typing import Any

from polycom_jax.activations import classic, normed
from polycom_jax.activations.learnable import INITIAL_SLOPE
from polycom_jax.kernels.poly_norm import poly_norm, poly_norm_glu, poly_relu_norm
from polycom_jax.kernels.poly_relu import poly_prelu, poly_relu
from polycom_jax.row import Parameter, Row
from polycom_jax.rows_elementwise import CONTROLS, TRAINABLE
from polycom_jax.rows_polynomial import VARIANTS, coefficients
from polycom_jax.rows_trainable import RIVALS

_INF = float("inf")


_POLYNOMIAL = (("coeffs", coefficients),)
_VERSION = ("implementation",)
_NORM: Any = {"over_rows": True, "takes_axis": True}
_POLYCOM = "Zhuo et al., ICLR 2025, arXiv 2411.03884"
_GLU = "Shazeer, arXiv 2002.05202"

# FLOPs: each arithmetic operation of the forward pass on a whole hidden array counts 1, be it a
# product, a comparison, a power or exp; what happens once a row, and casts, count nothing. Horner's
# scheme takes 2r, PolyNorm's means 2r (power, sum) and its scale 3 (abs, max, product); an RMSNorm
# behind a baseline 6 (the scale, square, sum, product).
POLYCOM: Mapping[str, Row] = {
    "poly_norm": Row(
        poly_norm,
        "a_0 + sum_i a_i N(x^i), N(u) = u / rms(u); coeffs = a_0 ... a_r",
        _POLYCOM,
        (4, 3),
        params=_POLYNOMIAL,
        keywords=("eps", *_VERSION),
        **_NORM,
    ),
    "poly_relu": Row(
        poly_relu,
        "sum_i a_i relu(x)^i; coeffs = a_0 ... a_r",
        _POLYCOM,
        (2, 1),
        params=_POLYNOMIAL,
        keywords=_VERSION,
        slopes=(0, _INF),
    ),
    "poly_prelu": Row(
        poly_prelu,
        "sum_i a_i prelu(x)^i, prelu(x) = x > 0 ? x : slope x; coeffs = a_0 ... a_r",
        f"{_POLYCOM}: the name; the formula is our reading of it",
        (2, 3),
        params=(*_POLYNOMIAL, ("slope", Parameter(INITIAL_SLOPE))),
        keywords=_VERSION,
        slopes=(1 / 18, _INF),
    ),
    "poly_relu_norm": Row(
        poly_relu_norm,
        "a_0 + sum_i a_i N(relu(x)^i); coeffs = a_0 ... a_r",
        f"{_POLYCOM}: the name; the formula is our reading of it",
        (4, 4),
        params=_POLYNOMIAL,
        keywords=("eps", *_VERSION),
        **_NORM,
    ),
    "poly_norm_glu": Row(
        poly_norm_glu,
        "poly_norm(gate) up; coeffs = a_0 ... a_r",
        "Motif Technologies, as in their models' code",
        (4, 4),
        gated=True,
        params=_POLYNOMIAL,
        keywords=("eps", *_VERSION),
        **_NORM,
    ),
}

BASELINES: Mapping[str, Row] = {
    "relu": Row(classic.relu, "max(x, 0)", "Nair and Hinton, ICML 2010", (0, 1), slopes=(0, 1)),
    "relu2": Row(
        classic.relu2, "max(x, 0)^2", "So et al., arXiv 2109.08668", (0, 2), slopes=(0, _INF)
    ),
    "gelu": Row(
        classic.gelu,
        "x Phi(x)",
        "Hendrycks and Gimpel, arXiv 1606.08415",
        (0, 5),
        slopes=(-0.12890, 1.12890),
    ),
    "gelu_tanh": Row(
        classic.gelu_tanh,
        "x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2",
        "Hendrycks and Gimpel, arXiv 1606.08415",
        (0, 10),
        slopes=(-0.12899, 1.12899),
    ),
    "silu": Row(
        classic.silu,
        "x sigma(x)",
        "Elfwing et al., arXiv 1702.03118",
        (0, 2),
        slopes=(-0.09984, 1.09984),
    ),
    "tanh": Row(classic.tanh, "tanh(x)", "classical", (0, 1), slopes=(0, 1)),
    "swiglu": Row(
        classic.swiglu, "silu(gate) up", _GLU, (0, 3), gated=True, slopes=(-0.09984, 1.09984)
    ),
    "geglu": Row(
        classic.geglu, "gelu(gate) up", _GLU, (0, 6), gated=True, slopes=(-0.12890, 1.12890)
    ),
    "reglu": Row(classic.reglu, "relu(gate) up", _GLU, (0, 2), gated=True, slopes=(0, 1)),
    "gelu_norm": Row(
        normed.gelu_norm, "N(gelu(x))", "a control", (0, 11), keywords=("eps",), **_NORM
    ),
    "relu2_norm": Row(
        normed.relu2_norm, "N(max(x, 0)^2)", "a control", (0, 8), keywords=("eps",), **_NORM
    ),
    "swiglu_norm": Row(
        normed.swiglu_norm,
        "N(silu(gate) up)",
        "a control",
        (0, 9),
        gated=True,
        keywords=("eps",),
        **_NORM,
    ),
}

ROWS: Mapping[str, Row] = {
    **POLYCOM,
    **BASELINES,
    **CONTROLS,
    **TRAINABLE,
    **VARIANTS,
    **RIVALS,
}
