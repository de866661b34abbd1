"""The official PolyCom activation's parameters, whose order is not ours.

BryceZhuo/PolyCom (`transformer.py` of the dense model, `model.py` of the mixture) keeps

    weight[0] f(x, r) + ... + weight[r - 1] f(x, 1) + bias[0],

the highest power first and the constant apart, in PolyReLU and PolyNorm alike. Here it is
coeffs[0] + coeffs[1] f(x, 1) + ... + coeffs[r] f(x, r). Norms are the same: root of the mean
square, 1e-6 inside it. Motif's models keep their gated PolyNorm in the same order, under
`mlp.act_fn.weight` and `mlp.act_fn.bias`: here it is `poly_norm_glu`. No other file of this project
knows the official order.
"""

import numpy as np
from jaxtyping import ArrayLike, Float

from polycom_jax._errors import require


def from_official(
    weight: Float[ArrayLike, "*S R"], bias: Float[ArrayLike, "*S 1"]
) -> Float[np.ndarray, "*S R+1"]:
    """coeffs, float32, from `weight` and `bias`; leading axes (layers, experts) are kept.

    Raises:
        InputError: `bias` has not the shape of `weight` with one entry at the end.
    """
    highest_first, constant = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
    require(
        highest_first.ndim >= 1
        and highest_first.shape[-1] >= 1
        and constant.shape == (*highest_first.shape[:-1], 1),
        f"Official PolyCom parameters: expected weight [..., order] and bias [..., 1], came weight"
        f" {list(highest_first.shape)} and bias {list(constant.shape)}.",
    )
    return np.concatenate([constant, highest_first[..., ::-1]], axis=-1)


def to_official(
    coeffs: Float[ArrayLike, "*S R+1"],
) -> tuple[Float[np.ndarray, "*S R"], Float[np.ndarray, "*S 1"]]:
    """(weight, bias), float32, from coeffs; the inverse of `from_official`.

    Official code holds order 3 only; other orders come out by the same rule.

    Raises:
        InputError: fewer than two coefficients.
    """
    ascending = np.asarray(coeffs, np.float32)
    require(
        ascending.ndim >= 1 and ascending.shape[-1] >= 2,
        f"coeffs: expected [..., order + 1] of order 1 or more, came {list(ascending.shape)}.",
    )
    return np.ascontiguousarray(ascending[..., :0:-1]), ascending[..., :1].copy()
