"""Ranks, similarities, distributions and curves against cases that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import analysis
from polycom_jax._errors import InputError
from polycom_jax.table import get_activation


def test_ranks_of_a_projector_are_its_dimension():
    s = analysis.singular_values(np.diag([2.0, 2.0, 2.0, 0.0, 0.0]))
    np.testing.assert_allclose(s, [2, 2, 2, 0, 0], atol=1e-12)
    for rank in (
        analysis.effective_rank,
        analysis.stable_rank,
        analysis.threshold_rank,
        analysis.energy_rank,
    ):
        assert rank(s) == pytest.approx(3)


def test_ranks_differ_where_singular_values_do():
    s = np.array([4.0, 2.0, 1.0, 1.0, 0.01])
    p = s / 8.01
    assert analysis.effective_rank(s) == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    assert analysis.stable_rank(s) == pytest.approx(22.0001 / 16)
    assert analysis.threshold_rank(s) == 4  # 0.01 is under 4 / 100
    # Squares add up to 16, 20, 21, 22 of 22.0001: shares 0.727, 0.909, 0.955, 0.99999.
    assert analysis.energy_rank(s, 0.9) == 2
    assert analysis.energy_rank(s, 0.92) == 3
    assert analysis.energy_rank(s, 0.99) == 4


def test_ranks_do_not_depend_on_scale_and_work_on_stacks():
    w = np.random.default_rng(0).standard_normal((3, 6, 4))
    s = analysis.singular_values(w)
    assert s.shape == (3, 4)
    for rank in (analysis.effective_rank, analysis.stable_rank, analysis.energy_rank):
        np.testing.assert_allclose(rank(s), rank(1000 * s))
        np.testing.assert_allclose(rank(s)[1], rank(analysis.singular_values(w[1])))


def test_a_matrix_of_zeros_is_refused():
    with pytest.raises(InputError, match="zeros"):
        analysis.effective_rank(np.zeros((2, 3)))


def test_cosine_similarity_is_a_mean_over_tokens():
    x = np.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, -1.0]]])
    found = analysis.cosine_similarity(x)
    np.testing.assert_allclose(found[0, 1], (1 + 0) / 2)
    np.testing.assert_allclose(found[0, 2], (0 - 1) / 2)  # a state of zeros counts 0
    np.testing.assert_allclose(found, found.T)


def test_linear_cka_is_the_formula_and_ignores_rotation_scale_and_shift():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 5))
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    found = analysis.linear_cka(np.stack([x, y, 3 * x @ rotation + 7]))
    np.testing.assert_allclose(found[0, 2], 1)
    a, b = x - x.mean(0), y - y.mean(0)
    # The same by Gram matrices of tokens: tr(KL) / sqrt(tr(KK) tr(LL)).
    k, gram = a @ a.T, b @ b.T
    wanted = np.trace(k @ gram) / np.sqrt(np.trace(k @ k) * np.trace(gram @ gram))
    np.testing.assert_allclose(found[0, 1], wanted)
    assert wanted < 0.5


def test_distributions():
    x = np.array([0.0, 0.0, 1.0, -1.0, 0.001, 3.0])
    found = analysis.distribution(x)
    assert found["zero_share"] == pytest.approx(2 / 6)
    assert found["near_zero_share"] == pytest.approx(3 / 6)
    assert found["positive_share"] == pytest.approx(3 / 6)
    assert found["largest_magnitude"] == 3
    assert found["mean"] == pytest.approx(3.001 / 6)
    assert found["rms"] == pytest.approx((11.000001 / 6) ** 0.5)
    assert found["median_magnitude"] == pytest.approx((0.001 + 1) / 2)
    # Of a root mean square of 1.66, and a median magnitude of 1.
    assert analysis.distribution(np.array([0.015, 0.017, 1.0, -1.0, 1.0, 3.6]))[
        "near_zero_share"
    ] == pytest.approx(1 / 6)
    centred = x - x.mean()
    assert found["kurtosis"] == pytest.approx(np.mean(centred**4) / np.mean(centred**2) ** 2)
    assert np.isnan(analysis.distribution(np.ones(4))["kurtosis"])
    normal = analysis.distribution(np.random.default_rng(0).standard_normal(200_000))
    assert normal["kurtosis"] == pytest.approx(3, abs=0.05)  # standard error sqrt(24 / n) = 0.011


def test_lazy_neurons_are_counted_by_entries_and_by_columns():
    hidden = np.array([[0.0, 1.0, -2.0, 0.0], [0.0, 0.0, 1e-30, 0.0], [0.0, 3.0, 4.0, -0.0]])
    assert analysis.lazy_neurons(hidden) == {"nonzero_share": 5 / 12, "dead_share": 2 / 4}
    rows = np.maximum(np.random.default_rng(0).standard_normal((50, 30)), 0)
    plain = sum(value > 0 for row in rows for value in row) / rows.size
    assert analysis.lazy_neurons(rows) == {"nonzero_share": plain, "dead_share": 0}


def test_massive_activations_want_both_conditions():
    x = np.full((10, 20), 0.2)
    assert analysis.massive(x)["count"] == 0
    x[3, 7] = 150.0  # over 100, and 750 times the median
    assert analysis.massive(x)["count"] == 0
    small = np.full((10, 20), 0.01)
    small[3, 7] = 50.0  # 5,000 times the median, and not over 100
    assert analysis.massive(small)["count"] == 0
    x[3, 7] = x[4, 7] = -250.0
    found = analysis.massive(x)
    assert (found["count"], found["channels"], found["tokens"]) == (2, 1, 2)
    assert found["largest_by_median"] == pytest.approx(1250)


def test_the_curve_of_an_element_wise_activation_is_its_graph():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)), jnp.float32)
    curve = analysis.response(get_activation("relu"), {}, x)
    wide = (curve.x[1] - curve.x[0]) / 2
    np.testing.assert_allclose(curve.mean, np.maximum(curve.x, 0), atol=wide)
    assert np.all(curve.high - curve.low <= 2 * wide + 1e-6)
    assert curve.density.sum() == pytest.approx(1 - 2e-3, abs=1e-3)


def test_the_curve_of_poly_norm_is_a_band_over_rows():
    row = get_activation("poly_norm", initial=(0.0, 1.0, 0.0, 0.0))
    x = np.random.default_rng(0).standard_normal((64, 64)) * np.linspace(0.5, 2, 64)[:, None]
    params = row.init(jax.random.key(0))
    curve = analysis.response(row, params, jnp.asarray(x, jnp.float32))
    middle = np.abs(curve.x - 1).argmin()
    # x / rms for rows of rms 0.5 to 2: at 1, anything from 0.5 to 2.
    assert curve.high[middle] - curve.low[middle] > 0.4
    y, wide = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)), curve.x[1] - curve.x[0]
    inside = y[np.abs(x - curve.x[middle]) < wide / 2]
    # To within two of the bin's numbers, for what float32 rounds.
    for end, share in ((curve.low, 0.1), (curve.high, 0.9)):
        assert np.mean(inside < end[middle]) == pytest.approx(share, abs=2 / inside.size)
    assert curve.density[middle] == pytest.approx(inside.size / x.size, abs=2 / x.size)
    gated = analysis.response(get_activation("swiglu"), {}, jnp.asarray(x, jnp.float32))
    silu = curve.x / (1 + np.exp(-curve.x))
    np.testing.assert_allclose(gated.mean, silu, atol=0.06)
