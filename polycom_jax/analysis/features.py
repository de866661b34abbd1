"""How many directions features use: RankMe and alpha-ReQ, from spectra in float64."""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from polycom_jax._errors import require
from polycom_jax.analysis.spectra import effective_rank

Features = Float[np.ndarray, "N D"]
"""A row a token or a document."""

NOISE = 1e-10
"""Eigenvalues below this share of the largest are rounding in any dtype, and no part of a power
law; those of few digits have a higher floor, see `alpha_req`."""


def covariance_eigenvalues(features: Features) -> Float[np.ndarray, " R"]:
    """Descending eigenvalues of X^T X / N, X the features less their mean; R = min(N, D).

    Raises:
        InputError: fewer than two rows.
    """
    x = np.asarray(features, np.float64)
    require(len(x) >= 2, f"A covariance needs two rows or more, came {len(x)}.")
    return np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / len(x)


def rankme_of_eigenvalues(features: Features) -> float:
    """exp(-sum p_i ln p_i), p_i = l_i / sum l, l the eigenvalues of the covariance.

    As arXiv 2509.23024 has it for language models. It is less than `rankme_of_singular_values`:
    squares weigh the large ones more.

    Raises:
        InputError: all rows are the same, or there are fewer than two.
    """
    return float(effective_rank(covariance_eigenvalues(features)))


def rankme_of_singular_values(features: Features) -> float:
    """exp(-sum p_i ln p_i), p_i = s_i / sum s, s the singular values of the features, not centred.

    RankMe as it was named (Garrido et al. 2023, arXiv 2210.02885).

    Raises:
        InputError: features that are all zero.
    """
    s = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    return float(effective_rank(s))


def alpha_req(features: Features, *, dtype: DTypeLike | None = None) -> float:
    """a of l_i ~ i^-a, by least squares on ln l_i over ln i; l as in `rankme_of_eigenvalues`.

    Left out is what rounding alone can make: eigenvalues under `NOISE` of the largest, or under
    eps^2 of the largest mean square of a feature, eps that of the dtype: one rounding makes about a
    twelfth of it at most, the rest is for those before. NaN where fewer than two are left. Slow
    decay, a small a, is many directions in use (Agrawal et al. 2022).

    Args:
        features: rows of any float dtype.
        dtype: that they were computed in; None: their own.

    Raises:
        InputError: fewer than two rows.
    """
    return _decay(covariance_eigenvalues(features), _rounding(features, dtype))


def feature_ranks(features: Features, *, dtype: DTypeLike | None = None) -> dict[str, float]:
    """`rankme_of_eigenvalues`, `rankme_of_singular_values` and `alpha_req` by name, in one go.

    NaN where a measure has no value: of fewer than two rows, of rows that are all the same, and of
    features that are not finite. `dtype` as in `alpha_req`.
    """
    x = np.asarray(features, np.float64)
    x = x if np.all(np.isfinite(x)) else np.zeros_like(x)
    values = covariance_eigenvalues(x) if len(x) >= 2 else np.zeros(1)
    own = np.asarray(features).dtype if dtype is None else dtype
    return {
        "rankme_of_eigenvalues": float(effective_rank(values)) if values[0] > 0 else math.nan,
        "rankme_of_singular_values": rankme_of_singular_values(x) if np.any(x) else math.nan,
        "alpha_req": _decay(values, _rounding(x, own)),
    }


def _rounding(features: Features, dtype: DTypeLike | None) -> float:
    """What eigenvalues rounding to a dtype, the features' own if None, can make."""
    own = jnp.dtype(np.asarray(features).dtype if dtype is None else dtype)
    eps = float(jnp.finfo(own).eps) if jnp.issubdtype(own, jnp.floating) else 0.0
    squares = np.mean(np.square(np.asarray(features, np.float64)), axis=0)
    return eps**2 * float(squares.max(initial=0.0))


def _decay(values: Float[np.ndarray, " R"], rounding: float) -> float:
    """The exponent of a power law through descending eigenvalues, rounding left out."""
    values = values[values > max(NOISE * values[0], rounding)]
    if len(values) < 2:
        return math.nan
    slope = np.polyfit(np.log(np.arange(1, len(values) + 1)), np.log(values), 1)[0]
    return -float(slope)


def mean_norm(features: Features) -> float:
    """The mean over rows of |x|."""
    return float(np.linalg.norm(np.asarray(features, np.float64), axis=-1).mean())
