"""Fits of L(N, D): known laws come back, known differences lie in their bands."""

from pathlib import Path

import numpy as np
import pytest
from scaling_folders import study

from experiments.compare.across.cells import Cell, read_cells
from experiments.compare.across.extrapolation import PAPER, difference_band, extrapolated
from experiments.compare.across.law import Law, Points, band, fit, fitted, meeting, missing
from polycom_jax._errors import InputError

LAW = Law(E=0.9, A=60.0, a=0.4, B=400.0, b=0.45)
BETTER = Law(E=0.89, A=60.0, a=0.4, B=380.0, b=0.45)
SIZES = {"bytes-0.1m": 114_048, "bytes-0.3m": 357_120, "bytes-1m": 1_021_568}


def grid(law: Law) -> Points:
    n, d = np.meshgrid([1e5, 4e5, 1e6, 3e6], [2e6, 8e6, 3e7])
    n, d = n.ravel(), d.ravel()
    loss = np.array([law.loss(x, y) for x, y in zip(n, d, strict=True)], np.float64)
    return Points(n, d, loss, np.ones_like(loss))


def cells(
    tmp_path: Path, *, sd: float, sizes: int = 3, seeds: int = 5, noise: int = 0
) -> list[Cell]:
    for place, (model, n) in enumerate(list(SIZES.items())[:sizes]):
        arms = {
            "swiglu": lambda d, n=n: float(LAW.loss(n, d)),
            "poly_norm": lambda d, n=n: float(BETTER.loss(n, d)),
        }
        for steps in (2240, 22400):
            study(
                tmp_path / f"{model}-{steps}", model, steps, arms, seeds=seeds, sd=sd,
                noise=10 * noise + place,
            )  # fmt: skip
    return read_cells(tmp_path)


@pytest.mark.parametrize("law", [LAW, BETTER, Law(0.0, 5.0, 0.2, 30.0, 0.3)])
def test_a_law_comes_back_from_its_own_losses(law: Law):
    found = fit(grid(law))
    assert (found.E, found.A, found.a) == pytest.approx((law.E, law.A, law.a), rel=1e-3, abs=1e-3)
    assert (found.B, found.b) == pytest.approx((law.B, law.b), rel=1e-3)
    assert not found.at_bounds


def test_seeds_weigh():
    points = grid(LAW)
    loss = points.loss.copy()
    loss[0] += 0.1
    light = Points(points.parameters, points.tokens, loss, np.where(np.arange(12) == 0, 1e-6, 1.0))
    assert fit(light).b == pytest.approx(LAW.b, rel=1e-3)
    heavy = Points(points.parameters, points.tokens, loss, np.ones(12))
    assert fit(heavy).b != pytest.approx(LAW.b, rel=1e-2)


def test_tokens_for_a_loss_are_the_inverse():
    assert LAW.tokens(1e6, float(LAW.loss(1e6, 5e7))) == pytest.approx(5e7)
    assert LAW.tokens(1e6, LAW.E) == np.inf


def test_laws_meet_where_they_are_equal():
    # Equal E and A: apart from there on which B / D^b are equal.
    early, late = Law(1.0, 0.0, 0.3, 10.0, 0.3), Law(1.0, 0.0, 0.3, 1000.0, 0.6)
    wanted = 100 ** (1 / 0.3)
    assert meeting(early, late, 1e6, 1e3, 1e12) == pytest.approx(wanted)
    assert meeting(early, late, 1e6, 1e8, 1e12) is None


def test_a_band_reaches_infinity_where_resamples_do():
    found = band(1.0, [1.0] * 90 + [np.inf] * 10)
    assert (found.low, found.high) == (1.0, np.inf)


def test_what_a_fit_lacks_is_told(tmp_path: Path):
    two = cells(tmp_path, sd=0.0, sizes=2)
    told = missing(two)
    assert "5 parameters" in told
    assert "3 sizes, there are 2" in told
    assert "pairs" not in told
    few = missing(two[:1])
    assert "5 pairs of size and length, there are 3" in few
    assert "there is 1" in few
    found = extrapolated(two)
    assert found.refused == told
    assert found.fit is None
    assert found.laws == found.predicted == ()
    points = grid(LAW)
    with pytest.raises(InputError, match="needs 5 points, came 4"):
        fit(Points(*(np.asarray(x)[:4] for x in vars(points).values())))


def test_without_noise_the_difference_is_exact_and_so_is_the_paper_s_point(tmp_path: Path):
    found = extrapolated(cells(tmp_path, sd=0.0))
    assert not found.refused
    (one,) = found.predicted
    n, d = PAPER.parameters, PAPER.tokens
    wanted = float(BETTER.loss(n, d) - LAW.loss(n, d))
    assert one.difference.value == pytest.approx(wanted, abs=2e-3)
    assert not one.difference.has_zero
    assert one.ratio.value < 1
    assert {c.arm for c in found.crossings} == {"poly_norm"}
    assert all(c.tokens is None for c in found.crossings)


def test_a_known_difference_lies_in_its_band(tmp_path: Path):
    """Within the sizes measured; five draws of seeds, of which at most one band may miss."""
    hits = 0
    for noise in range(5):
        found = cells(tmp_path / str(noise), sd=0.005, noise=noise)
        fits = fitted(found, ["swiglu", "poly_norm"], resamples=100)
        own = difference_band(fits, "poly_norm", 357_120, 7e6)
        truth = float(BETTER.loss(357_120, 7e6) - LAW.loss(357_120, 7e6))
        hits += own.low <= truth <= own.high
        assert own.high - own.low < 0.02
    assert hits >= 4


def test_a_report_comes_out_the_same_twice(tmp_path: Path):
    found = cells(tmp_path, sd=0.005)
    twice = [fitted(found, ["swiglu", "poly_norm"], resamples=20) for _ in range(2)]
    assert twice[0].resampled == twice[1].resampled
