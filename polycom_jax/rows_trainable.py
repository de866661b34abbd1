"""Rows with many learned numbers: rational functions, sums of functions, numbers a channel.

Bounds of derivatives hold at the start; FLOPs are those of the traced programs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from polycom_jax.activations import trainable
from polycom_jax.activations.grouped import EVONORM_GROUPS, GDN_SIZE
from polycom_jax.activations.rational import Form, magnitude, rational
from polycom_jax.custom import elementwise_row, row_reading_row
from polycom_jax.kernels.feature_groups import evonorm_s0, gdn
from polycom_jax.row import Parameter, Row

_CHANNEL: Any = {"per": "channel"}
_GROUPS = 8
_SUM: Mapping[Form, str] = {"a": "sum_i |b_i x^i|", "b": "|sum_i b_i x^i|"}

# The denominators have no odd powers, so both forms start alike.
_DEGREES: Mapping[str, tuple[tuple[float, ...], tuple[float, ...], str, tuple[float, float]]] = {
    "5_4": (
        (0.0, 1 / 2, 1 / 4, 3 / 56, 1 / 168, 1 / 3360),
        (0.0, 3 / 28, 0.0, 1 / 1680),
        "Molina et al., arXiv 1907.06732, and with groups Yang and Wang, ICLR 2025; it starts as"
        " Pade's approximant of silu",
        (-0.09976, 1.09976),
    ),
    "3_2": (
        (0.0218, 0.5, 1.5957, 1.1915),
        (0.0, 2.383),
        "Boulle et al., arXiv 2004.01902, with a guard; it starts as theirs, near relu",
        (-0.14954, 1.14954),
    ),
}
"""Name -> (numerator and denominator at the start, ascending; source; bounds of the derivative)."""


def _rational(form: Form, degrees: str, groups: int) -> Row:
    top, below, source, slopes = _DEGREES[degrees]
    own: Any = {"per": "group", "groups": groups} if groups > 1 else {}
    each = f"; b for each of {groups} groups of channels" if groups > 1 else ""
    return elementwise_row(
        partial(rational, form=form),
        {"numerator": Parameter(top), "denominator": Parameter(below, **own)},
        listed=True,
        prepared={"denominator": magnitude} if form == "a" else None,
        formula=f"sum_i a_i x^i / (1 + {_SUM[form]}), degrees {degrees.replace('_', ', ')}{each}",
        source=source,
        slopes=slopes,
    )


def _gdn_start(key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
    """sqrt(0.1) for a channel itself, 2^-18 for others of its group, which 0 would hold fast."""
    del key
    size, width = shape
    itself = jnp.arange(size)[:, None] == jnp.arange(width)[None] % size
    return jnp.where(itself, 0.1**0.5, 2.0**-18).astype(dtype)


def _affine() -> dict[str, Parameter]:
    return {"weight": Parameter(1.0, **_CHANNEL), "bias": Parameter(0.0, **_CHANNEL)}


RIVALS: Mapping[str, Row] = {
    **{
        f"rational_{form}_{degrees}{'_groups' if groups > 1 else ''}": _rational(
            form, degrees, groups
        )
        for degrees, form, groups in product(_DEGREES, _SUM, (1, _GROUPS))
    },
    "la": elementwise_row(
        trainable.combination,
        {"c": Parameter((0.25,) * 4)},
        listed=True,
        formula="c_0 x + c_1 relu(x) + c_2 tanh(x) + c_3 silu(x)",
        source="LA of arXiv 2605.26647; which functions, and the start, are our choice: those of"
        " Manessi and Rozza (arXiv 1801.09403), and silu",
        slopes=(0.23016, 0.89098),
    ),
    "series": elementwise_row(
        trainable.series,
        {"a": Parameter((0.5, 0.5)), "b": Parameter((0.5, -0.5))},
        listed=True,
        formula="silu(a_1 x + b_1) + silu(a_2 x + b_2)",
        source="PanGu-pi, arXiv 2312.17276; that there are two terms of silu, and the start, are"
        " our choice",
        slopes=(-0.08989, 1.08989),
    ),
    "srelu": elementwise_row(
        trainable.srelu,
        {
            "t_l": Parameter(0.0, **_CHANNEL),
            "a_l": Parameter(0.25, **_CHANNEL),
            "t_r": Parameter(1.0, **_CHANNEL),
            "a_r": Parameter(1.0, **_CHANNEL),
        },
        formula="x from t_l to t_r, t_l + a_l (x - t_l) below, t_r + a_r (x - t_r) above; numbers"
        " a channel",
        source="Jin et al., arXiv 1512.07030; it starts as a leaky ReLU as theirs, whose freezing"
        " of the first epochs is left out",
        slopes=(0.25, 1),
    ),
    "dyt": elementwise_row(
        trainable.dyt,
        {"alpha": Parameter(0.5), **_affine()},
        formula="weight tanh(alpha x) + bias; weight and bias a channel",
        source="DyT, Zhu et al., arXiv 2503.10622",
        slopes=(0, 0.5),
    ),
    "derf": elementwise_row(
        trainable.derf,
        {"alpha": Parameter(0.5), "shift": Parameter(0.0), **_affine()},
        formula="weight erf(alpha x + shift) + bias; weight and bias a channel",
        source="Derf, arXiv 2512.10938",
        slopes=(0, 0.56419),
    ),
    "evonorm_s0": row_reading_row(
        evonorm_s0,
        {
            # A group of one channel has no variance.
            "v": Parameter(1.0, **_CHANNEL, groups=2 * EVONORM_GROUPS),
            "gamma": Parameter(1.0, **_CHANNEL),
            "beta": Parameter(0.0, **_CHANNEL),
        },
        formula="gamma x sigma(v x) / sqrt(var + 1e-5) + beta, var over each of 32 groups of"
        " features; v, gamma, beta a channel",
        source="EvoNorm-S0, Liu et al., arXiv 2004.02967",
    ),
    "gdn": row_reading_row(
        gdn,
        {
            "beta": Parameter(1.0, **_CHANNEL),
            "gamma": Parameter(_gdn_start, shape=(GDN_SIZE,), **_CHANNEL, groups=GDN_SIZE),
        },
        formula="x_i / sqrt(beta_i^2 + 1e-6 + sum_j gamma_ij^2 x_j^2), j in groups of eight"
        " neighbours",
        source="GDN, Balle et al., arXiv 1511.06281, within groups",
    ),
}
