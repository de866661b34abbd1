"""Fits of L(N, D): known laws come back, known differences lie in their bands."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scaling_folders import STEP_TOKENS, study, write_run
from scipy import stats

from experiments.compare.across import extrapolation, resampled, tables
from experiments.compare.across.cells import Cell, read_cells
from experiments.compare.across.extrapolation import PAPER, extrapolated
from experiments.compare.across.law import (
    FORMS,
    Law,
    Points,
    PowerLaw,
    difference,
    fit,
    meetings,
    ratio,
    residuals,
)
from experiments.compare.across.resampled import Fit, Fitted, band, fitted, points_of, shared
from polycom_jax._errors import InputError

LAW = PowerLaw(E=0.9, A=60.0, a=0.4, B=400.0, b=0.45)
BETTER = PowerLaw(E=0.89, A=60.0, a=0.4, B=380.0, b=0.45)
SIZES = {"bytes-0.1m": 114_048, "bytes-0.3m": 357_120, "bytes-1m": 1_022_464}


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


def swiglu(cells: list[Cell]) -> Points:
    return points_of(cells, "swiglu", shared(cells, ["swiglu"]))


@pytest.mark.parametrize("law", [LAW, BETTER, PowerLaw(E=0.0, A=5.0, a=0.2, B=30.0, b=0.3)])
def test_a_law_comes_back_from_its_own_losses(law: PowerLaw):
    found = fit(grid(law))
    assert isinstance(found, PowerLaw)
    assert (found.E, found.A, found.a) == pytest.approx((law.E, law.A, law.a), rel=1e-3, abs=1e-3)
    assert (found.B, found.b) == pytest.approx((law.B, law.b), rel=1e-3)
    assert not found.at_bounds


def test_an_exponent_whose_factor_is_zero_is_not_determined():
    assert PowerLaw(E=1.0, A=0.0, a=0.3, B=400.0, b=0.45).at_bounds
    assert PowerLaw(E=1.0, A=60.0, a=0.3, B=0.0, b=0.45).at_bounds
    assert not LAW.at_bounds


def test_seeds_weigh():
    points = grid(LAW)
    loss = points.loss.copy()
    loss[0] += 0.1
    light = Points(points.parameters, points.tokens, loss, np.where(np.arange(12) == 0, 1e-6, 1.0))
    assert fit(light).b == pytest.approx(LAW.b, rel=1e-3)
    heavy = Points(points.parameters, points.tokens, loss, np.ones(12))
    assert fit(heavy).b != pytest.approx(LAW.b, rel=1e-2)


def test_a_point_of_three_seeds_counts_as_three_of_one():
    rng, points = np.random.default_rng(0), grid(LAW)
    loss = points.loss + 0.01 * rng.normal(size=len(points))
    weight = np.where(np.arange(12) % 3 == 0, 3, 1)
    once = fit(Points(points.parameters, points.tokens, loss, weight.astype(np.float64)))
    n, d, repeated = (np.repeat(x, weight) for x in (points.parameters, points.tokens, loss))
    each = fit(Points(n, d, repeated, np.ones(weight.sum())))
    at = [float(law.loss(1e6, d)) for law in (once, each) for d in (1e6, 1e8)]
    assert at[:2] == pytest.approx(at[2:], abs=1e-5)


def test_a_ratio_of_tokens_brings_an_arm_to_the_reference_s_loss():
    share = ratio(BETTER, LAW, 1e6, 5e7)
    assert float(BETTER.loss(1e6, share * 5e7)) == pytest.approx(float(LAW.loss(1e6, 5e7)))


def test_tokens_for_a_loss_are_the_inverse():
    assert LAW.tokens(1e6, float(LAW.loss(1e6, 5e7))) == pytest.approx(5e7)
    assert LAW.tokens(1e6, LAW.E) == np.inf


def test_residuals_are_measured_less_fitted_and_their_root_mean_square_is_told():
    points = grid(LAW)
    off = np.where(np.arange(12) % 2, 0.003, -0.001)
    moved = Points(points.parameters, points.tokens, points.loss + off, points.weight)
    np.testing.assert_allclose(residuals(LAW, moved), off, atol=1e-12)
    told = extrapolation._law("arm", Fit(LAW, moved, [LAW]))
    assert told.error == pytest.approx(((0.003**2 + 0.001**2) / 2) ** 0.5)
    assert not told.at_bounds


def test_of_several_starts_the_best_fit_is_taken(monkeypatch: pytest.MonkeyPatch):
    costs = itertools.cycle([3.0, 1.0, 2.0])
    found = [SimpleNamespace(cost=next(costs), x=np.log([0.1 * (1 + k), 0.5])) for k in range(9)]
    answers = iter(found)
    search = "experiments.compare.across.law.least_squares"
    monkeypatch.setattr(search, lambda *args, **options: next(answers))
    assert fit(grid(LAW)).exponents == pytest.approx((0.2, 0.5))


def test_laws_meet_where_they_are_equal():
    # Equal E and A: apart from there on which B / D^b are equal.
    early = PowerLaw(E=1.0, A=0.0, a=0.3, B=10.0, b=0.3)
    late = PowerLaw(E=1.0, A=0.0, a=0.3, B=1000.0, b=0.6)
    wanted = 100 ** (1 / 0.3)
    assert meetings(early, late, 1e6, 1e3, 1e12) == pytest.approx((wanted,))
    assert meetings(early, late, 1e6, 1e8, 1e12) == ()


def test_laws_that_meet_twice_are_equal_at_both():
    # B / D^b - B' / D^b' = 6 / y - 6 / y^2 with y = D^0.3 is 4 / 3 at y = 1.5 and at y = 3.
    one = PowerLaw(E=1.0, A=0.0, a=0.3, B=6.0, b=0.3)
    other = PowerLaw(E=7 / 3, A=0.0, a=0.3, B=6.0, b=0.6)
    wanted = (1.5 ** (1 / 0.3), 3 ** (1 / 0.3))
    assert meetings(one, other, 1e6, 1.0, 1e6) == pytest.approx(wanted)
    assert meetings(one, other, 1e6, 1.0, 5.0) == pytest.approx(wanted[:1])
    assert meetings(one, other, 1e6, 5.0, 30.0) == ()
    assert meetings(one, one, 1e6, 1.0, 1e6) == ()


def test_a_crossing_has_the_share_of_resampled_fits_that_cross():
    one = PowerLaw(E=1.0, A=0.0, a=0.3, B=6.0, b=0.3)
    twice = PowerLaw(E=7 / 3, A=0.0, a=0.3, B=6.0, b=0.6)
    own: list[Law] = [one] * 4
    others: list[Law] = [twice, one, one, one]
    pair = Fit(one, grid(one), own), Fit(twice, grid(one), others)
    fits = Fitted(FORMS[0], {}, {"arm": pair})
    found = extrapolation._crossing(fits, "arm", 1e6, 1.0)
    assert found.tokens == pytest.approx((1.5 ** (1 / 0.3), 3 ** (1 / 0.3)))
    assert found.share == 1 / 4


def test_crossings_are_looked_for_from_the_shortest_length_on(tmp_path: Path):
    size, meet = SIZES["bytes-0.1m"], 2e6
    late = {"swiglu": lambda d: 2 + 400 / d**0.45}
    late["poly_norm"] = lambda d: late["swiglu"](d) + 0.1 * ((meet / d) ** 0.45 - 1)
    for steps in (2240, 22400):
        study(tmp_path / str(steps), "bytes-0.1m", steps, late, seeds=2)
    found = read_cells(tmp_path)
    said = extrapolated(found)
    (one,) = said.crossings
    assert tables.fits(said, found)[2].rows[0][2] == f"{meet / size:.3g}"  # tokens a parameter
    assert min(cell.tokens[0] for cell in found) < meet < max(cell.tokens[0] for cell in found)
    assert (one.parameters, one.tokens) == (size, (pytest.approx(meet, rel=1e-3),))


def test_a_band_reaches_infinity_where_resamples_do():
    found = band(1.0, [1.0] * 90 + [np.inf] * 10)
    assert (found.low, found.high) == (1.0, np.inf)


def test_what_a_fit_lacks_is_told(tmp_path: Path):
    two = cells(tmp_path, sd=0.0, sizes=2)
    power, by_size = FORMS
    told = power.lacks(swiglu(two))
    assert "5 parameters" in told
    assert "3 sizes, there are 2" in told
    assert "pairs" not in told
    few = power.lacks(swiglu(two[:1]))
    assert "5 pairs of size and length, there are 3" in few
    assert "there is 1" in few
    assert "4 pairs of size and length, there are 3" in by_size.lacks(swiglu(two[:1]))
    with pytest.raises(InputError, match="at least 5 pairs"):
        fit(swiglu(two[:1]))
    found = extrapolated(two[:1])
    assert len(found.refused) == 2
    assert found.fit is None
    assert found.laws == found.predicted == ()


def test_with_two_sizes_a_law_has_a_number_for_each(tmp_path: Path):
    found = extrapolated(cells(tmp_path, sd=0.0, sizes=2))
    assert found.form == "L(N, D) = E_N + B / D^b"
    assert "3 sizes, there are 2" in found.refused[0]
    law = found.laws[0]
    for size in list(SIZES.values())[:2]:
        floor = law.numbers[f"E at {size:,}"].value
        assert floor == pytest.approx(LAW.E + LAW.A * size**-LAW.a, rel=1e-3)
    assert law.numbers["b"].value == pytest.approx(LAW.b, rel=1e-3)
    assert [one.parameters for one in found.predicted] == list(SIZES.values())[:2]
    one = found.predicted[0]
    assert one.tokens == pytest.approx(PAPER.each * 114_048)
    wanted = difference(BETTER, LAW, 114_048, one.tokens)
    assert one.difference.value == pytest.approx(wanted, abs=1e-4)


def test_without_noise_the_difference_is_exact_and_so_is_the_paper_s_point(tmp_path: Path):
    found = extrapolated(cells(tmp_path, sd=0.0))
    assert not found.refused
    *inside, one = found.predicted
    assert [p.parameters for p in inside] == list(SIZES.values())
    n, d = PAPER.parameters, PAPER.tokens
    wanted = float(BETTER.loss(n, d) - LAW.loss(n, d))
    assert one.difference.value == pytest.approx(wanted, abs=2e-3)
    assert not one.difference.has_zero
    assert one.ratio.value < 1
    assert {c.arm for c in found.crossings} == {"poly_norm"}
    assert all(c.tokens == () for c in found.crossings)


def test_a_known_difference_lies_in_its_band(tmp_path: Path):
    """Within the sizes measured; five draws of seeds, of which at most one band may miss."""
    hits = 0
    for noise in range(5):
        found = cells(tmp_path / str(noise), sd=0.005, noise=noise)
        fits = fitted(found, ["swiglu", "poly_norm"], FORMS[0], resamples=100)
        own = fits.band("poly_norm", difference, 357_120, 7e6)
        truth = float(BETTER.loss(357_120, 7e6) - LAW.loss(357_120, 7e6))
        hits += own.low <= truth <= own.high
        assert own.high - own.low < 0.02
    assert hits >= 4


def test_what_a_seed_does_to_both_arms_is_no_doubt_about_their_difference(tmp_path: Path):
    for cell in cells(tmp_path, sd=0.0, sizes=1):
        for arm, law in (("swiglu", LAW), ("poly_norm", BETTER)):
            with_seeds(cell, arm, range(5), law, above=0.01)
    fit = fitted(read_cells(tmp_path), ["swiglu", "poly_norm"], FORMS[1], resamples=20)
    apart = fit.band("poly_norm", difference, 114_048, 7e6)
    own = band(0.0, [float(law.loss(114_048, 7e6)) for law in fit.fits["swiglu"].resampled])
    assert own.high - own.low > 0.01
    assert apart.high - apart.low < 1e-3 * (own.high - own.low)


def test_the_band_of_a_mean_is_student_s_interval(tmp_path: Path):
    (cell,) = cells(tmp_path, sd=0.01, sizes=1)[:1]
    seeds = cell.seeds("swiglu")
    losses = cell.losses("swiglu", seeds)[:, 0]
    rng = np.random.default_rng(0)
    moved = [
        float(resampled._shift(cell, "swiglu", seeds, rng.choice(seeds, 5))[0]) for _ in range(4000)
    ]
    half = band(0.0, moved).high
    wanted = stats.t.ppf(0.975, 4) * losses.std(ddof=1) / 5**0.5
    assert half == pytest.approx(wanted, rel=0.1)


def with_seeds(cell: Cell, arm: str, seeds: range, law: Law, above: float = 0.0) -> None:
    """An arm's runs in a folder: no others than these."""
    root = Path(str(cell.root))
    for path in (root / "runs" / arm).glob("*seed?-*.json"):
        path.unlink()
    for seed in seeds:
        losses = (
            float(law.loss(cell.parameters, STEP_TOKENS * n)) + above * seed for n in cell.lengths
        )
        write_run(root, arm, seed, tuple(losses), cell.lengths)


def test_points_are_means_over_the_seeds_that_bands_are_drawn_from(tmp_path: Path):
    for cell in cells(tmp_path, sd=0.0, sizes=1):
        with_seeds(cell, "swiglu", range(5), LAW, above=0.01)
        with_seeds(cell, "poly_norm", range(2, 7), BETTER, above=0.01)
    found = read_cells(tmp_path)
    fit = fitted(found, ["swiglu", "poly_norm"], FORMS[1], resamples=2)
    own = fit.fits["poly_norm"].points
    np.testing.assert_array_equal(own.weight, 3)
    apart = own.loss - fit.fits["swiglu"].points.loss
    wanted = [BETTER.loss(114_048, d) - LAW.loss(114_048, d) for d in own.tokens]
    np.testing.assert_allclose(apart, np.array(wanted, np.float64), atol=1e-12)


@pytest.mark.parametrize(("seeds", "number"), [(range(4, 9), "1 seed"), (range(5, 9), "0 seeds")])
def test_a_folder_without_two_common_seeds_is_left_out_and_told(
    tmp_path: Path, seeds: range, number: str
):
    first, second, *_ = cells(tmp_path, sd=0.002, sizes=2)
    with_seeds(first, "poly_norm", seeds, BETTER)
    found = extrapolated(read_cells(tmp_path))
    why = found.left_out[f"poly_norm in {first.name}"]
    assert why == f"It has {number} in common with swiglu, and a band needs 2."
    assert found.fit is not None
    assert len(found.fit.fits["poly_norm"].points) == len(found.fit.fits["swiglu"].points) - 3
    told = tables.fits(found, [first])[0].notes
    assert any(line.startswith(f"poly_norm in {first.name} is left out.") for line in told)
    with_seeds(second, "poly_norm", seeds, BETTER)
    one = [cell for cell in read_cells(tmp_path) if cell.parameters == first.parameters]
    refused = extrapolated(one)
    assert refused.fit is None
    assert any(number in why for why in refused.refused)


def test_an_arm_with_few_seeds_takes_none_from_the_others(tmp_path: Path):
    for cell in cells(tmp_path, sd=0.002, sizes=1):
        with_seeds(cell, "gelu", range(4, 5), LAW)
        root = Path(str(cell.root))
        write_run(root, "relu2", 0, (), cell.lengths, diverged=True)
        write_run(root, "relu2", 1, (2.0, 1.9, 1.8), cell.lengths)
    found = extrapolated(read_cells(tmp_path))
    assert found.fit is not None
    assert list(found.fit.fits) == ["swiglu", "poly_norm"]
    np.testing.assert_array_equal(found.fit.fits["poly_norm"].points.weight, 5)
    assert "there are 0" in found.left_out["gelu"]
    assert found.left_out["relu2 in bytes-0.1m-2240"] == "1 of 2 runs diverged."


def test_an_arm_stands_beside_the_reference_where_both_have_runs(tmp_path: Path):
    """Long runs of the reference alone, off its law, say nothing of the difference."""
    for cell in cells(tmp_path, sd=0.0, sizes=2):
        with_seeds(cell, "gelu", range(5), BETTER)
    both = extrapolated(read_cells(tmp_path))
    long = tmp_path / "bytes-0.1m-224000"
    alike = {"swiglu": lambda d: 0.1 + float(LAW.loss(SIZES["bytes-0.1m"], d))}
    alike["poly_norm"] = alike["swiglu"]
    study(long, "bytes-0.1m", 224_000, alike, seeds=5, sd=0.0)
    found = extrapolated(read_cells(tmp_path))

    def of(arm: str, said: Any) -> list[Any]:
        return [one for one in (*said.predicted, *said.crossings) if one.arm == arm]

    assert of("gelu", found) == of("gelu", both)
    assert of("poly_norm", found) != of("poly_norm", both)
    assert found.fit is not None
    assert len(found.fit.fits["swiglu"].points) == len(found.fit.fits["gelu"].points) + 3


@pytest.mark.slow
def test_a_report_comes_out_the_same_twice(tmp_path: Path):
    found = cells(tmp_path, sd=0.005)
    twice = [fitted(found, ["swiglu", "poly_norm"], FORMS[0], resamples=20) for _ in range(2)]
    one, other = ({arm: own.resampled for arm, own in fit.fits.items()} for fit in twice)
    assert one == other
