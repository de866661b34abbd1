"""RankMe and alpha-ReQ against plain formulas, and on spectra that are known."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.analysis.features import (
    alpha_req,
    covariance_eigenvalues,
    feature_ranks,
    mean_norm,
    rankme_of_eigenvalues,
    rankme_of_singular_values,
)

RNG = np.random.default_rng(0)


def with_spectrum(values: np.ndarray, rows: int = 40) -> np.ndarray:
    """Centred features whose covariance has these eigenvalues."""
    x = RNG.standard_normal((rows, len(values)))
    u = np.linalg.qr(x - x.mean(axis=0))[0]
    v = np.linalg.qr(RNG.standard_normal((len(values), len(values))))[0]
    return u * np.sqrt(rows * values) @ v.T


def test_eigenvalues_are_those_of_the_covariance():
    x = RNG.standard_normal((30, 4)) + 7
    expected = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    np.testing.assert_allclose(covariance_eigenvalues(x), expected, rtol=1e-10)


def test_rankme_is_the_exponential_of_an_entropy_of_eigen_or_of_singular_values():
    x = RNG.standard_normal((30, 5)) * [4, 2, 1, 1, 0.5] + 1
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    p = values / values.sum()
    plain = math.exp(-sum(q * math.log(q) for q in p))
    assert rankme_of_eigenvalues(x) == pytest.approx(plain, rel=1e-10)
    s = np.sqrt(np.linalg.eigvalsh(x.T @ x))
    p = s / s.sum()
    plain = math.exp(-sum(q * math.log(q) for q in p))
    assert rankme_of_singular_values(x) == pytest.approx(plain, rel=1e-8)


def test_rankme_counts_equal_directions_and_eigenvalues_give_less():
    assert rankme_of_eigenvalues(with_spectrum(np.ones(6))) == pytest.approx(6.0)
    uneven = with_spectrum(np.array([9.0, 4.0, 1.0, 1.0]))
    assert rankme_of_eigenvalues(uneven) < rankme_of_singular_values(uneven)
    assert rankme_of_eigenvalues(uneven + 5) == pytest.approx(rankme_of_eigenvalues(uneven))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_alpha_req_finds_the_power_of_a_power_law(alpha: float):
    values = 3.0 * np.arange(1, 9) ** -alpha
    assert alpha_req(with_spectrum(values)) == pytest.approx(alpha, rel=1e-8)


def test_alpha_req_leaves_rounding_out():
    x = with_spectrum(np.arange(1, 6) ** -1.0)
    flat = np.concatenate([x, np.zeros((len(x), 3))], axis=1)
    assert alpha_req(flat) == pytest.approx(1.0, rel=1e-8)
    assert math.isnan(alpha_req(np.outer(np.arange(4.0), [1.0, 2.0])))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_alpha_req_leaves_out_what_rounding_to_few_digits_makes(dtype: str):
    x = with_spectrum(np.arange(1, 65) ** -5.0, rows=400)
    rounded = np.asarray(jnp.asarray(x, dtype))
    wide = rounded.astype(np.float32)
    assert alpha_req(wide) < 4.95  # the floor of rounding is taken for a slow decay
    assert alpha_req(rounded) == pytest.approx(5, rel=1e-3)
    assert alpha_req(wide, dtype=dtype) == alpha_req(rounded)
    assert feature_ranks(wide, dtype=dtype)["alpha_req"] == alpha_req(rounded)
    assert feature_ranks(rounded)["alpha_req"] == alpha_req(rounded)
    assert math.isnan(alpha_req(wide + 1000, dtype=dtype))  # rounding to such digits hides it all


def test_feature_ranks_are_the_three_measures_or_nan_where_there_is_none():
    x = RNG.standard_normal((30, 5)) * [4, 2, 1, 1, 0.5] + 1
    assert feature_ranks(x) == {
        "rankme_of_eigenvalues": pytest.approx(rankme_of_eigenvalues(x)),
        "rankme_of_singular_values": pytest.approx(rankme_of_singular_values(x)),
        "alpha_req": pytest.approx(alpha_req(x)),
    }
    same = feature_ranks(np.ones((4, 3)))
    assert same.pop("rankme_of_singular_values") == pytest.approx(1)
    nothing = [x[:1] * 0, x * 0, np.full((4, 3), np.inf), np.array([[1.0], [np.nan]])]
    for numbers in (same, *map(feature_ranks, nothing)):
        assert all(map(math.isnan, numbers.values()))


def test_mean_norm_is_a_mean_over_rows():
    assert mean_norm(np.array([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(3.0)


def test_one_row_has_no_covariance():
    with pytest.raises(InputError, match="two rows or more, came 1"):
        rankme_of_eigenvalues(np.ones((1, 3)))
