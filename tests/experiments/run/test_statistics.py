"""Statistics of paired runs against hand-computed cases, and the search for a rate."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from experiments.run import statistics
from experiments.run.rate_search import MOST_EXTENSIONS, Search, search
from experiments.run.statistics import (
    at_tokens,
    crossing,
    holm,
    mean_interval,
    median_error,
    paired,
    planned,
    sign_flip,
    slope_at,
    smallest_p,
)
from polycom_jax._errors import InputError


def test_the_interval_is_students():
    # d = 1, 2, 3: mean 2, sd 1, error 1 / sqrt(3); t_{0.975, 2} = 4.302653 (any table).
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert found.mean == pytest.approx(2)
    assert found.sd == pytest.approx(1)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert found.correlation == pytest.approx(1)
    assert not found.found  # zero lies inside: -0.48 to 4.48
    assert paired([2.0, 3.0, 4.0001], [1.0, 2.0, 3.0]).found


@pytest.mark.parametrize("count", [3, 4, 5, 8, 16])
def test_what_is_detectable_is_found_with_its_chance(count: int):
    arm = np.random.default_rng(count).normal(size=count).tolist()
    found = paired(arm, [0.0] * count)
    away = found.detectable * math.sqrt(count) / found.sd
    wide = stats.t.ppf(0.975, count - 1)
    power = stats.nct.sf(wide, count - 1, away) + stats.nct.cdf(-wide, count - 1, away)
    assert power == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(("count", "further"), [(2, 0.0), (3, 0.5), (5, 2.0)])
def test_a_drawn_study_finds_what_is_detectable(count: int, further: float):
    size = statistics.detectable(1 / math.sqrt(count), count, further)
    rng, studies = np.random.default_rng(0), 200_000
    drawn = rng.normal(size, 1, (studies, count))
    means = drawn.mean(1) + further * rng.normal(size=studies)
    half = statistics.half_interval(drawn.std(1, ddof=1) / math.sqrt(count), count, further)
    four_errors = 4 * math.sqrt(0.8 * 0.2 / studies)
    assert (np.abs(means) > half).mean() == pytest.approx(0.8, abs=four_errors)


def test_a_further_error_adds_in_quadrature():
    arm, reference = [2.0, 4.0, 6.0], [1.0, 2.0, 3.0]
    found, wide = paired(arm, reference), paired(arm, reference, further=0.7)
    half = math.hypot(found.high - found.mean, 1.959964 * 0.7)
    assert (wide.low, wide.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert (wide.mean, wide.p, wide.sd) == (found.mean, found.p, found.sd)
    # Without the seeds' own error only the normal one is left.
    same = paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], further=0.7)
    assert same.detectable == pytest.approx((1.959964 + 0.841621) * 0.7, rel=1e-5)
    assert paired([2.0, 3.0], [1.0, 2.0]).detectable == 0


def test_the_error_of_a_median():
    assert median_error([3.0] * 11) == 0
    # Of a normal distribution: sqrt(pi / 2) sd / sqrt(n), for many values.
    values = np.random.default_rng(1).normal(size=1001)
    expected = math.sqrt(math.pi / 2) * values.std() / math.sqrt(1001)
    assert median_error(values.tolist()) == pytest.approx(expected, rel=0.2)


def test_a_slope_is_that_of_the_curve_which_is_read():
    line = (10.0, 20.0, 40.0), (4.0, 3.0, 2.0)
    for wanted in (10.0, 15.0, 20.0, 40.0):
        assert slope_at(*line, wanted) == pytest.approx(-1 / math.log(2))
    tokens, losses = (10.0, 20.0, 40.0), (4.0, 3.0, 2.5)
    step = 1e-4
    for wanted in (12.0, 30.0, 39.0):
        apart = at_tokens(tokens, losses, wanted * (1 + step)) - at_tokens(tokens, losses, wanted)
        assert slope_at(tokens, losses, wanted) == pytest.approx(apart / step, rel=10 * step)
    # The line between the last two falls faster than a curve that flattens does at its end.
    assert -0.5 / math.log(2) < slope_at(tokens, losses, 40.0) < 0


def test_the_sign_flip_test_counts_patterns():
    # |sum| of +-1 +-2 +-3 is 6 twice, 4 twice, 2 twice, 0 twice.
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip(np.array([-1.0, 2.0, 3.0])) == 4 / 8
    assert sign_flip(np.array([1.0, 2.0, -3.0])) == 1
    assert sign_flip(np.full(8, 0.1)) == smallest_p(8) == 2 / 256


def test_patterns_that_are_level_by_what_was_measured_count():
    # Of the sums of +-0.1, +-0.1 and +-0.2, one is 0.4 and two are 0.2, as the one that was seen.
    d = np.array([0.1, -0.1, 0.2])
    off = d + 1e-6 * np.array([1.0, 1.0, 0.0])
    assert sign_flip(d) == sign_flip(off, rounding=1e-6) == 2 * 3 / 8
    assert sign_flip(off) == 2 * 2 / 8


def test_no_p_is_below_the_smallest_where_patterns_are_drawn():
    # Of 2^22 patterns 2^20 are drawn, and the one that was seen counts.
    assert sign_flip(np.full(22, 0.1)) >= smallest_p(22) == 2 / (statistics.PATTERNS + 1)


@pytest.mark.slow
def test_drawn_patterns_agree_with_counted_ones(monkeypatch: pytest.MonkeyPatch):
    d = np.random.default_rng(1).normal(0.4, 1, 21)
    drawn = sign_flip(d)
    monkeypatch.setattr(statistics, "PATTERNS", 1 << 21)
    counted = sign_flip(d)
    # Twice a share of 2^20 draws: standard error below 0.001.
    assert drawn == pytest.approx(counted, abs=0.003)
    assert drawn != counted


def test_holm_steps_down_and_never_falls():
    # Sorted: .01 * 4, .02 * 3, .03 * 2 (not below its predecessor), .5 * 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("b", [0.2, 0.5, 0.8])
def test_a_loss_between_lengths_is_nearer_to_the_curve_than_a_line_is(b: float):
    def loss(tokens: float) -> float:
        return 1 + 3 * (tokens / 100) ** -b

    tokens = [100.0, 200.0, 400.0]
    losses = list(map(loss, tokens))
    for wanted in np.geomspace(101, 399, 50).tolist():
        line = float(np.interp(math.log(wanted), np.log(tokens), losses))
        read = at_tokens(tokens, losses, wanted)
        assert abs(read - loss(wanted)) < 0.5 * (line - loss(wanted))
        assert crossing(tokens, losses, read) == (pytest.approx(wanted), True)


def test_a_loss_between_lengths_lies_between_their_losses():
    tokens = [100.0, 200.0, 400.0]
    for losses in ([3.0, 1.0, 0.99], [3.0, 2.99, 1.0], [3.0, 2.0, 2.1]):
        read = [at_tokens(tokens, losses, x) for x in np.geomspace(100, 400, 41).tolist()]
        for at, (one, other) in enumerate(itertools.pairwise(losses)):
            own = read[20 * at : 20 * at + 21]
            assert min(one, other) - 1e-12 <= min(own) <= max(own) <= max(one, other) + 1e-12


def test_a_comparison_that_could_not_be_made_stays_in_its_family():
    one, other = paired([1.0, 2.0, 3.0], [2.0, 3.0, 4.5]), paired([1.0, 2.0], [2.0, 1.0])
    first, none, last = planned([one, None, other])
    assert first == pytest.approx(3 * 0.25)
    assert math.isnan(none)
    assert last == 1.0


def test_runs_that_do_not_pair_are_refused():
    with pytest.raises(InputError, match="two or more pairs"):
        paired([1.0], [2.0])
    with pytest.raises(InputError, match="diverged"):
        paired([1.0, math.nan], [2.0, 3.0])
    assert math.isnan(paired([1.0, 2.0], [3.0, 3.0]).correlation)
    assert paired([1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]).correlation == pytest.approx(-1)


def test_a_crossing_is_interpolated_in_log_tokens_and_never_extrapolated():
    tokens, losses = [100.0, 400.0, 1600.0], [3.0, 2.0, 1.5]
    assert crossing(tokens, losses, 2.0) == (400, True)
    assert crossing(tokens, losses, 1.5) == (1600, True)
    assert crossing(tokens, losses, 3.5) == (100, False)
    assert crossing(tokens, losses, 1.0) == (1600, False)
    assert crossing(tokens[:2], losses[:2], 2.5) == (pytest.approx(200), True)
    assert at_tokens(tokens[:2], losses[:2], 200) == pytest.approx(2.5)
    line = [3.0, 2.0, 1.0]
    assert crossing(tokens, line, 2.5) == (pytest.approx(200), True)
    assert at_tokens(tokens, line, 800) == pytest.approx(1.5)
    assert math.isnan(at_tokens(tokens, losses, 99))
    assert math.isnan(at_tokens(tokens, losses, 1601))
    # Rising again does not matter: it has been there.
    assert crossing(tokens, [3.0, 2.0, 2.2], 2.0) == (400, True)
    assert crossing([*tokens, 6400.0], [3.0, 2.0, 2.75, 1.0], 2.0) == (400, True)


@pytest.mark.parametrize(("best", "grows"), [(4.0, 0), (1.0, 0), (0.25, 4), (64.0, 4)])
def test_a_search_goes_on_until_the_best_rate_is_inside(best: float, grows: int):
    asked = []

    def score(rate: float) -> float:
        asked.append(rate)
        return abs(math.log2(rate / best))

    found = search((0.5, 1.0, 2.0, 4.0, 8.0), score)
    assert found.best == best
    assert not found.at_edge
    assert len(asked) == len(set(asked)) == len(found.rates)
    assert len(found.rates) == 5 + {0.25: 2, 64.0: 4}.get(best, grows)
    assert found.rates == tuple(sorted(found.rates))


def test_a_search_without_an_end_says_that_it_stands_at_the_edge():
    found = search((1.0, 2.0, 4.0, 8.0), lambda rate: -rate)
    assert found.at_edge
    assert len(found.rates) == 4 + MOST_EXTENSIONS
    assert found.best == found.rates[-1]


def test_a_search_ends_where_the_next_rate_is_one_that_was_tried():
    """To the digits that rates are rounded to."""
    found = search((0.001, 0.0010000001, 0.002, 0.004), lambda rate: rate)
    assert found.rates == (0.001, 0.0010000001, 0.002, 0.004)
    assert found.at_edge


def test_a_better_rate_is_one_that_was_tried_beside_the_results_own():
    tried = (1.0, 2.0, 4.0), (3.0, 1.0, 2.0)
    assert Search(*tried, best=4.0, at_edge=True).better == 2.0
    assert Search(*tried, best=2.0, at_edge=False).better is None
    assert Search(*tried, best=8.0, at_edge=False).better is None  # never tried: nothing is known


def test_a_rate_that_diverges_is_never_the_best():
    found = search((1.0, 2.0, 4.0, 8.0), lambda rate: rate if rate < 3 else math.inf)
    assert found.best < 1


def test_the_interval_of_a_mean_is_student_s():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t of two degrees at 0.975; the deviation is 1
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-9)
    with pytest.raises(InputError, match="two or more"):
        mean_interval([1.0])


def test_a_small_p_is_not_printed_as_zero():
    texts = ["nan", "0.0003", "1e-05", "0.001", "0.050", "1.000"]
    assert [statistics.p_text(p) for p in (math.nan, 0.000336, 1e-5, 0.001, 0.05, 1.0)] == texts
