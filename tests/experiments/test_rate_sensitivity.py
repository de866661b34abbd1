"""Sensitivity to the learning rate: against its definition by hand, and what reports say of it."""

import math
from pathlib import Path

import pytest
from scaling_folders import COMMITTED, RATES, study, write_run

from experiments.compare import figures, sensitivity
from experiments.compare.across import tables
from experiments.compare.across.cells import read_cell
from experiments.compare.runs import Run, RunKey
from experiments.compare.sensitivity import sensitivities
from experiments.run.rate_search import FIRST_SEED
from experiments.run.statistics import mean_interval

GRID = (1e-3, 1e-2, 1e-1)


def searched(
    losses: tuple[float | None, ...], initial: float | None = 5.0, seed: int = 0,
    rates: tuple[float, ...] = GRID,
) -> list[Run]:  # fmt: skip
    """A run a rate; None: it diverged."""
    return [
        Run(
            RunKey("-", rate, FIRST_SEED + seed, (8,)), loss is None,
            () if loss is None else (loss,), (), (), (), (), 1.0, initial=initial,
        )
        for rate, loss in zip(rates, losses, strict=True)
    ]  # fmt: skip


def test_it_is_the_mean_excess_over_the_best_rate_and_no_loss_is_above_the_first():
    (found,) = sensitivities({"a": searched((2.0, 1.5, 9.0))}, 257)
    assert found.values == (pytest.approx((2.0 + 1.5 + 5.0) / 3 - 1.5),)
    assert found.losses == ((2.0,), (1.5,), (5.0,))
    assert found.shown == "1.3333"
    (lost,) = sensitivities({"a": searched((2.0, 1.5, None))}, 257)
    assert lost.values == found.values
    (flat,) = sensitivities({"a": searched((1.5, 1.5, 1.5))}, 257)
    assert flat.values == (0.0,)


def test_several_seeds_have_an_interval():
    runs = searched((2.0, 1.5, 1.7)) + searched((2.1, 1.5, 1.9), seed=1)
    (found,) = sensitivities({"a": runs[::-1]}, 257)
    assert found.values == pytest.approx((0.7 / 3, 1.0 / 3))
    mean, low, high = mean_interval(found.values)
    assert found.shown == f"{mean:.4f} [{low:.4f}, {high:.4f}]"
    assert found.losses[0] == (2.0, 2.1)


def test_arms_are_compared_over_the_rates_and_seeds_that_they_have_all_of():
    wide = searched((9.0, 2.0, 1.5, 1.7), rates=(1e-4, *GRID)) + searched((1.0, 1.0, 1.0), seed=1)
    a, b = sensitivities({"a": wide, "b": searched((2.0, 1.5, 1.7))}, 257)
    assert a.rates == b.rates == GRID
    assert a.values == b.values  # the second seed has not all of a's rates
    assert a.tried == (1e-4, *GRID)


def test_an_arm_whose_best_is_at_an_end_of_the_range_is_not_compared():
    grid, more = (3e-3, 6e-3, 1.2e-2, 2.4e-2), (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
    runs = {
        "inside": searched((1.98, 1.90, 1.92, 1.99), rates=grid),
        "lowest": searched((2.04, 1.97, 1.98, 2.04, 2.54), rates=more),
        "below": searched((1.96, 1.97, 1.98, 2.04, 2.54), rates=more),
        "highest": searched((1.99, 1.98, 1.97, 1.96), rates=grid),
    }
    inside, *others = sensitivities(runs, 257)
    assert inside.rates == grid
    assert inside.best == 6e-3
    assert inside.values == (pytest.approx((1.98 + 1.90 + 1.92 + 1.99) / 4 - 1.90),)
    assert [one.best for one in others] == [3e-3, 1.5e-3, 2.4e-2]
    for one in others:
        assert one.values == ()
        assert "at an end of the range, or beyond" in one.shown
    assert sensitivity.row(others[0])[1:4] == ("0.003 to 0.024", "4", "0.003")


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (searched((2.0, 1.5, None), None), "the loss before the first update is not known"),
        (searched((2.0, 1.5, math.log(257)), None), "the loss before the first update"),
        (searched((2.0, 1.5), rates=GRID[:2]), "2 rates in common, fewer than 3"),
        (searched((2.0, 1.5, 1.6))[:2] + searched((1.0, 1.0, 1.0), seed=1)[2:], "no seed has"),
    ],
)
def test_where_there_is_none_it_says_why(runs: list[Run], why: str):
    (found,) = sensitivities({"a": runs}, 257)
    assert found.values == ()
    assert why in found.shown
    assert sensitivity.row(found)[-1] == found.shown


def test_runs_of_earlier_versions_need_no_first_loss_below_that_of_guessing():
    (found,) = sensitivities({"a": searched((2.0, 1.5, 1.6), None)}, 257)
    assert found.values == (pytest.approx(0.2),)


def test_arms_without_a_search_are_left_out():
    assert sensitivities({"a": []}, 257) == []
    assert [one.arm for one in sensitivities({"a": [], "b": searched((1.0,) * 3)}, 257)] == ["b"]


def test_a_folder_has_it_over_the_rates_of_all_its_arms(tmp_path: Path):
    arms = {"swiglu": lambda d: 1.6, "poly_norm": lambda d: 1.5}
    root = study(tmp_path / "a", "bytes-0.1m", 560, arms)
    write_run(root, "swiglu", FIRST_SEED, (1.9,), (560,), rate=0.024)
    rows = tables.sensitive([read_cell(root)]).rows
    span = f"{RATES[0]} to {RATES[-1]}"
    assert rows == tuple(("a", arm, span, "3", "0.006", "1", "0.0100") for arm in arms)


def test_committed_searches_have_theirs():
    (cell,) = (read_cell(COMMITTED / "bytes-0.1m-20"),)
    found = cell.sensitivities
    assert [one.arm for one in found] == list(cell.arms)
    for one in found:
        assert len(one.values) == 2
        assert all(0 < value < 0.1 for value in one.values)
        assert cell.arms[one.arm].search.best in one.tried


def test_nothing_is_drawn_of_searches_without_a_number(tmp_path: Path):
    lost = sensitivities({"a": searched((None,) * 3, None)}, 257)
    assert not figures.draw_rates(tmp_path / "rates", {"x": lost, "y": []})
    assert not list(tmp_path.iterdir())
