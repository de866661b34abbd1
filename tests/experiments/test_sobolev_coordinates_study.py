"""The study of coordinates end to end: what it writes, how it goes on, how it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.run.rate_search import FIRST_SEED
from experiments.sobolev.__main__ import main
from experiments.sobolev.coordinates.figures import _caption
from experiments.sobolev.coordinates.options import CoordinatesOptions
from experiments.sobolev.coordinates.report import _difference
from experiments.sobolev.coordinates.study import Cell, Study
from experiments.sobolev.coordinates.summary import (
    MEASURES,
    Difference,
    differences,
    mean_of,
    psnr,
    ranked,
    remarks,
)
from experiments.sobolev.coordinates.train import Run, Trainer
from experiments.sobolev.store import Store
from polycom_jax import InputError

WORDS = (
    "coordinates --arms siren poly_norm --targets shapes --parameters 60 --layers 1 --side 8"
    " --steps 8 --seeds 2"
)


def a_run(seed: int, held: float, *, rate: float = 0.1, failed: bool = False, **other) -> Run:
    train = 5.0 if failed else held / 2
    numbers = {"sup": 3 * held, "slopes": held, "length": held, "deviation": 1.0, "score": held}
    target = "pieces" if seed >= FIRST_SEED else "shapes"
    return Run(target, seed, rate, (1, 2), (1.0, train), (1.0, held), **{**numbers, **other})


def a_cell(arm: str, *helds: float, failed: int | tuple[int, ...] = ()) -> Cell:
    failed = (failed,) if isinstance(failed, int) else failed
    found = [a_run(FIRST_SEED, 0.2, rate=rate, score=abs(rate - 0.1)) for rate in (0.03, 0.1, 0.3)]
    found += [a_run(seed, held, failed=seed in failed) for seed, held in enumerate(helds)]
    return Cell("shapes", arm, 100, found)


def test_errors_are_compared_by_ratios_and_failed_runs_stand_apart():
    ratios = (1.9, 2.0, 2.1, 2.0, 2.2, 1.8)
    base = (0.01, 0.02, 0.015, 0.011, 0.03, 0.012)
    cells = [
        a_cell("siren", *base),
        a_cell("gauss", *(r * b for r, b in zip(ratios, base, strict=True)), failed=5),
    ]
    found = {each.measure: each for each in differences(cells, "siren")}
    assert set(found) == {"L2", "sup", "eikonal", "gradient"}
    assert found["L2"].pairs == 5
    assert found["L2"].found is not None
    assert found["L2"].found.mean == pytest.approx(0.71, abs=0.02)  # log 2
    assert found["L2"].p == 2 / 2**6  # the run that failed is behind its pair, too
    assert found["L2"].verdict == "worse"
    assert mean_of(cells[0].results(), MEASURES["L2"]).mean == pytest.approx(0.0152, abs=2e-4)
    text = "\n".join(remarks(cells, [*found.values()], "siren"))
    assert "gauss on shapes (1 of 6)" in text
    assert "at the edge" not in text
    assert psnr(0.02) == pytest.approx(40)


def on_an_image(arm: str, *helds: float, failed: tuple[int, ...] = ()) -> Cell:
    own = a_cell(arm, *helds, failed=failed)
    runs = [
        replace(
            run, target="flower" if run.seed >= FIRST_SEED else "china",
            slopes=3 * run.held[-1], length=9.0,
        )
        for run in own.runs
    ]  # fmt: skip
    return replace(own, target="china", runs=runs)


def test_images_are_compared_by_decibels_of_which_more_are_better():
    cells = [
        on_an_image("siren", *SIX),
        on_an_image("gauss", *(held / 2 for held in SIX)),
        on_an_image("wire", *(2 * held for held in SIX)),
        on_an_image("finer", *(held / 2 for held in SIX), failed=(0, 1, 2, 3, 4, 5)),
    ]
    found = differences(cells, "siren")
    assert {each.measure for each in found} == {"PSNR", "training PSNR", "gradient"}
    own = {each.arm: each for each in found if each.measure == "PSNR"}
    twice = 20 * math.log10(2)
    for arm, sign in (("gauss", 1), ("wire", -1)):
        result = own[arm].found
        assert result is not None
        assert result.mean == pytest.approx(sign * twice)
        assert own[arm].side == sign
    assert _difference(own["gauss"]).startswith("+6.02 [+6.02, +6.02], p ")
    # Of three arms with six seeds the least p is 3 x 2 / 2^6.
    assert own["gauss"].verdict == "better, not after Holm"
    assert own["wire"].verdict == "worse, not after Holm"
    assert (own["finer"].side, own["finer"].verdict) == (-1, "worse, not after Holm")
    assert [cell.arm for cell, _ in ranked(cells, "china")] == ["gauss", "siren", "wire", "finer"]
    runs, numbers = cells[0].results(), [20 * math.log10(2 / held) for held in SIX]
    mean = sum(numbers) / 6
    assert mean_of(runs, MEASURES["PSNR"]).mean == pytest.approx(mean)
    # Half of the error at the points trained on, and thrice that in gradients.
    assert mean_of(runs, MEASURES["training PSNR"]).mean == pytest.approx(mean + twice)
    errors = [3 * held for held in SIX]
    wanted = math.exp(sum(map(math.log, errors)) / 6)
    assert mean_of(runs, MEASURES["gradient"]).mean == pytest.approx(wanted)


SIX = (0.01, 0.02, 0.015, 0.011, 0.03, 0.012)
"""Errors of a reference."""


def l2_beside_siren(*cells: Cell, failed: tuple[int, ...] = ()) -> list[Difference]:
    found = differences([a_cell("siren", *SIX, failed=failed), *cells], "siren")
    return [each for each in found if each.measure == "L2"]


def test_an_arm_that_failed_with_half_of_the_seeds_is_not_ahead_by_the_others():
    halves = [held / 2 for held in SIX]
    (found,) = l2_beside_siren(a_cell("gauss", *halves, failed=(0, 2, 4)))
    assert found.found is not None
    assert found.found.high < 0
    assert found.verdict == "no difference found"
    assert found.p > 0.05
    text = _difference(found)
    assert text.startswith("0.5 [0.5, 0.5] of 3, p ")


def test_an_arm_that_failed_with_every_seed_is_worse():
    gauss, wire = l2_beside_siren(
        a_cell("gauss", *SIX, failed=tuple(range(6))), a_cell("wire", *SIX, failed=(0, 1))
    )
    assert gauss.found is None
    assert gauss.p == 2 / 2**6
    assert gauss.verdict == "worse, not after Holm"  # one of two
    assert _difference(gauss) == "none, p 0.062"
    assert wire.verdict == "no difference found"  # four are level
    (both,) = l2_beside_siren(a_cell("gauss", *SIX, failed=tuple(range(6))), failed=tuple(range(6)))
    assert both.verdict == "not comparable"
    assert math.isnan(both.adjusted)


def test_a_failed_reference_counts_for_the_arm():
    (found,) = l2_beside_siren(a_cell("gauss", *[held / 2 for held in SIX]), failed=(1, 3))
    assert (found.pairs, found.seeds, found.side, found.p) == (4, 6, -1, 2 / 2**6)
    assert found.verdict == "better"
    line = next(line for line in remarks([a_cell("siren", *SIX)], [], "siren"))
    assert "failed" not in line


def test_where_no_run_failed_p_is_that_of_the_values():
    (found,) = l2_beside_siren(a_cell("gauss", *(1.1 * held for held in reversed(SIX))))
    assert found.found is not None
    assert found.p == found.found.p
    assert _difference(found).count("of") == 0


def test_an_arm_that_mostly_failed_comes_last():
    cells = [
        a_cell("gauss", *(held / 9 for held in SIX), failed=(0, 1, 2, 3)),
        a_cell("siren", *SIX),
        a_cell("wire", *(held / 2 for held in SIX), failed=(0,)),
    ]
    assert [cell.arm for cell, _ in ranked(cells, "shapes")] == ["wire", "siren", "gauss"]
    assert "gauss 0.0021 (4 of 6 failed)" in remarks(cells, [], "siren")[0]


def test_a_run_that_diverged_is_not_chosen_after_it_was_stored():
    cell = a_cell("siren", 0.1, 0.2)
    worst = a_run(FIRST_SEED, math.nan, rate=1.0, score=math.inf)
    cell.runs.append(worst)
    stored = Cell.of(json.loads(json.dumps(cell.record())), cell.name)
    assert stored.searched.best == 0.1
    assert stored.runs[-1].failed
    assert stored.runs[:-1] == cell.runs[:-1]


def searched(scores: dict[float, tuple[float, ...]]) -> list[Run]:
    return [
        a_run(FIRST_SEED + i, 0.2, rate=rate, score=score)
        for rate, own in scores.items()
        for i, score in enumerate(own)
    ]


def test_rates_are_compared_by_the_seeds_that_all_were_tried_with():
    cell = Cell("shapes", "siren", 100, searched({0.1: (1.0, 9.0), 0.3: (2.0,), 1.0: (3.0, 3.0)}))
    assert cell.searched.best == 0.1
    assert cell.searched.losses == (1.0, 2.0, 3.0)


def test_results_are_those_of_the_best_rate_that_has_some():
    runs = searched({0.1: (1.0,), 0.3: (2.0,), 1.0: (3.0,)})
    assert Cell("shapes", "siren", 100, runs).rate == 0.1
    cell = Cell("shapes", "siren", 100, [*runs, a_run(1, 0.5, rate=0.3), a_run(0, 0.5, rate=1.0)])
    assert cell.searched.best == 0.1
    assert cell.rate == 0.3
    assert [run.seed for run in cell.results()] == [1]
    assert _caption(cell, "shapes") == "siren"  # seed 0, whose picture is kept, is not among them
    cell.runs.append(a_run(0, 0.25, rate=0.3))
    assert _caption(cell, "shapes") == "siren\n0.25"


def test_the_rate_that_is_trained_is_the_one_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With fewer seeds of the search than the folder has, and rates of an earlier search."""
    errors = {0.001: (1.0, 9.0), 0.003: (2.0, 2.0), 0.01: (3.0, 3.0), 0.03: (9.0, 9.0)}

    def train(self: Study, cell: Cell, name: str, seed: int, rate: float, tell) -> Run:
        at = errors[rate][seed - FIRST_SEED] if seed >= FIRST_SEED else 0.5
        cell.runs.append(replace(a_run(seed, 0.5, rate=rate, score=at), target=name))
        return cell.runs[-1]

    monkeypatch.setattr(Study, "_train", train)
    store = Store(tmp_path, "coordinates")
    (tmp_path / "cells").mkdir()
    options = CoordinatesOptions(arms=("siren",), targets=("shapes",), seeds=2, search_seeds=2)
    (cell,) = Study(options, store, lambda share, doing: None).run()
    assert cell.rate == cell.searched.best == 0.003
    store.keep_cell(cell.name, cell.record())
    fewer = replace(options, search_seeds=1, learning_rates=(0.001, 0.003, 0.03))
    (cell,) = Study(fewer, store, lambda share, doing: None).run()
    assert cell.search_seeds == {FIRST_SEED, FIRST_SEED + 1}
    assert cell.rate == cell.searched.best == 0.003
    assert len(cell.results()) == 2


def test_options_say_what_does_not_go_together():
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"targets": ("elevation",)}, "must name one image that is not among targets"),
        ({"arms": ("gauss",)}, "reference among --arms 'siren'"),
        ({"arms": ("siren", "gaus")}, "Did you mean 'gauss'"),
        ({"targets": ("shape",)}, "Did you mean 'shapes'"),
        ({"side": 9}, "side=9 must be even"),
        ({"extent": 0.0}, "extent=0.0 must be positive"),
        ({"learning_rates": (1e-3, 1e-2)}, "three or more"),
        ({"parameters": 20}, "do not fit"),
        ({"seeds": 1}, "at least 2"),
    )
    for options, said in cases:
        with pytest.raises(InputError, match=said):
            CoordinatesOptions(**options)


def test_misuse_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["coordinates", "--reference", "gelu", "--out", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "about.json cannot be read" in lines[1]


@pytest.mark.slow
def test_a_study_writes_goes_on_and_is_reported_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = [*WORDS.split(), "--out", str(tmp_path)]
    assert main(words) == 0
    assert "--seeds 4" in capsys.readouterr().out
    record = json.loads((tmp_path / "coordinates.json").read_text())
    assert [cell["arm"] for cell in record["cells"]] == ["siren", "poly_norm"]
    cell = json.loads((tmp_path / "cells" / "shapes-siren.json").read_text())
    assert {run["target"] for run in cell["runs"]} == {"shapes", "pieces"}
    assert all(run["commit"] for run in cell["runs"])
    assert {run["seed"] for run in cell["runs"] if run["target"] == "shapes"} == {0, 1}
    report = (tmp_path / "coordinates.md").read_text()
    assert "commit of the runs" in report
    assert "plots/shapes.png" in report

    trained = list[int]()
    run = Trainer.run

    def count(self: Trainer, target, seed: int, rate: float, tell):
        trained.append(seed)
        return run(self, target, seed, rate, tell)

    monkeypatch.setattr(Trainer, "run", count)
    assert main([*words, "--seeds", "3"]) == 0
    assert trained == [2, 2]
    assert main(["report", str(tmp_path)]) == 0
    assert trained == [2, 2]
    assert main([*words, "--steps", "9"]) == 2
    assert "holds a study with other options" in capsys.readouterr().err


def test_an_arm_that_failed_stays_in_holm_s_family():
    root = Path(__file__).resolve().parents[2] / "experiments/results/sobolev/coordinates/cells"
    cells = [Cell.of(json.loads(path.read_text()), path.stem) for path in root.glob("shapes-*")]
    found = [each for each in differences(cells, "siren") if each.measure == "L2"]
    assert [each.arm for each in found if each.found is None] != []
    least = min(each.adjusted for each in found if each.found is not None)
    seeds = max(each.pairs for each in found)
    assert least == pytest.approx(len(found) * 2 / 2**seeds)
