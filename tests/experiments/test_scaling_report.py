"""Reports from stored run files: what is read, compared, said and refused."""

import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scaling_folders import COMMITTED, STEP_TOKENS, study, write_run

from experiments.compare import __main__ as compare
from experiments.compare import sensitivity
from experiments.compare.across import tables
from experiments.compare.across.cells import continued, read_cell, read_cells, stored_config
from experiments.compare.across.differences import differences, frugality, turns
from experiments.compare.across.extrapolation import PAPER, extrapolated
from experiments.compare.across.leaderboard import section, standings
from experiments.compare.across.resampled import shared
from experiments.run.rate_search import FIRST_SEED

LENGTHS = (560, 1120, 2240)


def falling(start: float) -> dict:
    return {
        "swiglu": lambda d: start - 0.1 * (d / STEP_TOKENS / 560) ** 0.5,
        "poly_norm": lambda d: start + 0.03 - 0.12 * (d / STEP_TOKENS / 560) ** 0.5,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study(tmp_path / "bytes-0.1m-20", "bytes-0.1m", 2240, falling(2.0), sd=0.002)
    study(tmp_path / "bytes-0.3m-20", "bytes-0.3m", 7040, falling(1.7), sd=0.002, noise=1)
    return tmp_path


def test_a_report_needs_run_files_alone(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert compare.main(["report", str(folder)]) == 0
    text = (folder / "scaling.md").read_text()
    told = capsys.readouterr().out
    for words in (
        "Differences at equal tokens, full lengths", "shorter lengths", "Tokens for the same loss",
        "No fit: L(N, D) = E + A / N^a + B / D^b has 5 parameters", "L(N, D) = E_N + B / D^b",
        "What these data cannot say", "inside",
        "no tests of their own", sensitivity.TITLE, "python -m experiments.compare report",
    ):  # fmt: skip
        assert words in text, words
        assert words in told or words.startswith("python"), words
    numbers = json.loads((folder / "scaling.json").read_text())
    assert [cell["folder"] for cell in numbers["folders"]] == ["bytes-0.1m-20", "bytes-0.3m-20"]
    assert len(numbers["differences"]) == 6
    assert "3 sizes" in numbers["fit"]["refused"][0]
    # Its search has losses of 0.02, 0 and 0.01 above the best.
    assert "| bytes-0.1m-20 | poly_norm | 0.003 to 0.012 | 3 | 0.006 | 1 | 0.0100 |" in text
    sensitive = numbers["sensitivity to the learning rate"]
    assert [(one["folder"][6:10], one["arm"]) for one in sensitive] == [
        ("0.1m", "swiglu"), ("0.1m", "poly_norm"), ("0.3m", "swiglu"), ("0.3m", "poly_norm"),
    ]  # fmt: skip
    assert sensitive[0]["values"] == [pytest.approx(0.01)]
    for name in ("tokens", "compute", "differences", "rates"):
        assert 1000 < (folder / "plots" / f"scaling-{name}.png").stat().st_size < 200_000


@pytest.mark.slow
def test_a_report_of_three_sizes_has_fits(folder: Path, capsys: pytest.CaptureFixture[str]):
    study(folder / "bytes-1m-20", "bytes-1m", 20_000, falling(1.5), sd=0.002, seeds=3, noise=2)
    assert compare.main(["report", str(folder), "--out", str(folder / "o"), "--json=-"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert [law["arm"] for law in numbers["fit"]["laws"]] == ["swiglu", "poly_norm"]
    assert numbers["fit"]["predicted"][-1]["parameters"] == PAPER.parameters
    text = (folder / "o" / "scaling.md").read_text()
    assert "By these laws, at 186 bytes a parameter" in text
    assert "| -0.019 | 0.72 |" in text
    assert "over means of seeds, weighted by their number;" in text
    assert "powers of ten" in text
    assert (folder / "o" / "plots" / "scaling-residuals.png").is_file()


def test_differences_are_paired_and_turn_where_their_sign_does(folder: Path):
    cells = read_cells(folder)
    found = {(d.cell, d.tokens): d for d in differences(cells)}
    full = found["bytes-0.1m-20", 2240 * STEP_TOKENS]
    assert full.full
    assert full.result is not None
    assert full.result.mean == pytest.approx(0.03 - 0.02 * 2, abs=0.004)
    assert full.seeds == 5
    assert full.p_holm == pytest.approx(2 * full.result.p)  # two folders, one family
    (turn,) = [t for t in turns(cells) if t.cell == "bytes-0.1m-20"]
    assert turn.ahead
    assert turn.before == 1120 * STEP_TOKENS < turn.tokens < turn.after
    ends = [found[turn.cell, tokens].result for tokens in (turn.before, turn.after)]
    means = [end.mean for end in ends if end is not None]
    at = np.interp(math.log(turn.tokens), np.log([turn.before, turn.after]), means)
    assert at == pytest.approx(0, abs=1e-12)
    # 0.03 - 0.02 at the first length, and a root of two more of it at the second.
    for tokens, wanted in ((560, 0.01), (1120, 0.03 - 0.02 * 2**0.5)):
        result = found[turn.cell, tokens * STEP_TOKENS].result
        assert result is not None
        assert result.mean == pytest.approx(wanted, abs=0.004)
    assert {f.cell: f.needed.median < 1 for f in frugality(cells)}["bytes-0.1m-20"]


def test_tables_have_numbers_that_follow_from_the_runs(folder: Path):
    cells = read_cells(folder)
    size, tokens = 114_048, [n * STEP_TOKENS for n in LENGTHS]
    assert tables.folders(cells).rows[0][3] == f"{tokens[-1] / size:.1f}"
    arm = cells[0].arms["swiglu"]
    rows = [row for row in tables.losses(cells).rows if row[:2] == (cells[0].name, "swiglu")]
    for at, row in enumerate(rows):
        own = [run.heldout[at] for run in arm.runs.values()]
        spread = (f"{statistics.fmean(own):.4f}", f"{statistics.stdev(own):.4f}")
        assert row[2:6] == (f"{tokens[at]:,}", f"{arm.flops * tokens[at]:.3g}", *spread)
    found = differences(cells)
    full = tables.compared(found, full=True)
    ps = [(d.result.p, d.p_holm) for d in found if d.full and d.result]
    assert [row[6:8] for row in full.rows] == [(f"{p:.3f}", f"{holm:.3f}") for p, holm in ps]
    assert all(p < holm for p, holm in ps)
    # Five seeds and two tests: 2 / 2^5, twice.
    assert "can be as small as 0.125, so that the test alone decides nothing" in full.notes[1]
    turn = next(t for t in turns(cells) if t.cell == cells[0].name)
    assert tables.turned([turn], cells).rows[0][4] == f"{turn.tokens / size:.1f}"


def test_arms_with_most_seeds_of_the_reference_are_fitted_first(folder: Path):
    root = folder / "bytes-0.1m-20"
    for arm, seeds in (("relu2", (0, 1)), ("gelu", (2, 3, 4))):
        for seed in seeds:
            write_run(root, arm, seed, (2.0, 1.9, 1.8), LENGTHS)
    common = shared([read_cell(root)], ["swiglu", "relu2", "gelu"])
    assert common.arms == {root.name: ["swiglu", "gelu"]}
    assert common.seeds == {root.name: [2, 3, 4]}
    assert [*common.left_out] == [f"relu2 in {root.name}"]


def test_an_arm_is_compared_on_the_seeds_that_both_have(folder: Path):
    root = folder / "bytes-0.1m-20"
    for seed in (5, 6):
        write_run(root, "swiglu", seed, (2.0, 1.9, 1.8), LENGTHS)
    (found,) = [d for d in differences([read_cell(root)]) if d.full]
    assert found.seeds == 5
    assert found.result is not None


def test_an_arm_of_which_a_run_diverged_is_not_compared(folder: Path):
    root = folder / "bytes-0.1m-20"
    write_run(root, "poly_norm", 4, (), LENGTHS, diverged=True)
    cell = read_cell(root)
    for one in differences([cell]):
        assert (one.result, one.seeds) == (None, 5)
        assert one.verdict == "not comparable: 1 of 5 diverged"
    assert turns([cell]) == []
    assert frugality([cell]) == []
    rows = {row[1]: row[-2:] for row in tables.losses([cell]).rows}
    assert rows == {"swiglu": ("5", "0"), "poly_norm": ("4", "1")}
    said: Any = SimpleNamespace(beyond=(1.0, 2.0), unit="byte")
    limits = {row[0]: row[1] for row in tables.limits([cell], said).rows}
    assert limits["small differences"].startswith("4 seeds at least: the sign-flip test")
    write_run(root, "swiglu", 1, (), LENGTHS, diverged=True)
    verdict = differences([read_cell(root)])[0].verdict
    assert verdict == "not comparable: 1 of 5 diverged; swiglu, 1 of 5 diverged"


def test_results_are_those_of_the_best_rate_that_has_any(folder: Path):
    root = folder / "bytes-0.1m-20"
    write_run(root, "swiglu", 0, (9.0, 9.0, 9.0), LENGTHS, rate=0.012)
    arm = read_cell(root).arms["swiglu"]
    assert arm.search.best == 0.006
    assert len(arm.runs) == 5
    # A rate that one search seed alone has tried is judged by the seeds that all have.
    write_run(root, "swiglu", FIRST_SEED + 1, (0.1,), LENGTHS[-1:], rate=0.003)
    assert read_cell(root).arms["swiglu"].search.best == 0.006


def test_a_better_rate_without_results_is_told(folder: Path):
    root = folder / "bytes-0.3m-20"
    write_run(root, "swiglu", FIRST_SEED, (0.1,), (7040,), rate=0.003)
    cells = read_cells(folder)
    search = cells[1].arms["swiglu"].search
    assert (search.best, search.better) == (0.006, 0.003)
    told = {row[:2]: row[-1] for row in tables.rates(cells).rows}
    assert told.pop((root.name, "swiglu")) == "0.003, without results"
    assert {*told.values()} == {"inside"}
    limits = {row[0]: row[1] for row in tables.limits(cells, extrapolated(cells)).rows}
    assert "swiglu in bytes-0.3m-20 (0.003, without results)." in limits["better rates"]
    # log10(1.345e9 / 357,120) is 3.58.
    assert "The largest has 357,120 parameters, 3.6 powers of ten below" in limits["larger models"]
    assert "0.006, 0.003 is better" in str(section(cells[1], standings(cells[1])).rows)


def test_a_study_that_goes_on_has_at_least_the_seeds_of_its_folder(folder: Path):
    root = folder / "bytes-0.1m-20"
    config = stored_config(root)
    for seed in range(5, 12):
        write_run(root, "swiglu", seed, (2.0, 1.9, 1.8), LENGTHS)
    assert continued(config, root).seeds == 12
    assert continued(config, root / "none") == config


def test_a_study_that_goes_on_begins_with_the_first_seed_of_its_folder(tmp_path: Path):
    root = tmp_path / "bytes-0.1m-20"
    study(root, "bytes-0.1m", 2240, falling(2.0), sd=0.002, seeds=0)
    path = root / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "first_seed": 100}))
    for seed in range(100, 116):
        write_run(root, "swiglu", seed, (2.0, 1.9, 1.8), LENGTHS)
    assert continued(stored_config(root), root).result_seeds == range(100, 116)


@pytest.mark.parametrize(
    ("tokenizer", "told", "text"),
    [
        ("bytes", "at 186 bytes a parameter", "about 25% of that text. Nats a byte here"),
        ("bpe", "at 186 tokens a parameter", "Nats a token of each tokenizer."),
    ],
)
def test_a_token_is_what_the_settings_tokenizer_makes(
    tmp_path: Path, tokenizer: str, told: str, text: str
):
    arms = falling(2.0)
    for steps in (2240, 22_400):
        path = study(tmp_path / f"{steps}", "bytes-0.1m", steps, arms, sd=0.002) / "settings.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({**stored, "data.tokenizer": tokenizer}))
    cells = read_cells(tmp_path)
    found = extrapolated(cells)
    (laws,) = [table for table in tables.fits(found, cells) if table.title.startswith("By these")]
    assert laws.title == f"By these laws, {told}"
    assert text in laws.notes[0]
    (length,) = [row[1] for row in tables.limits(cells, found).rows if row[0] == "longer training"]
    read = "22,937,600 bytes, 4.6" if tokenizer == "bytes" else "22,937,600 tokens, 4.0"
    assert f"The longest runs read {read} powers of ten below" in length
    assert "; 201 " in length  # 22,937,600 / 114,048, a parameter
    assert ("about 743 bytes" in length) == (tokenizer == "bytes")


@pytest.mark.slow
def test_an_arm_whose_runs_all_diverged_is_told_and_not_fitted(folder: Path):
    for seed in range(3):
        write_run(folder / "bytes-0.1m-20", "relu2", seed, (), LENGTHS, diverged=True)
    cell = read_cell(folder / "bytes-0.1m-20")
    assert "relu2" in cell.arms
    assert "relu2" not in cell.numbered
    (own,) = [d for d in differences([cell]) if d.arm == "relu2" and d.full]
    assert own.result is None
    assert own.verdict == "not comparable: 3 of 3 diverged"
    assert compare.main(["report", str(folder)]) == 0
    assert "relu2 0" in (folder / "scaling.md").read_text()


def test_epochs_are_told_where_the_text_is_known(folder: Path):
    path = folder / "bytes-0.1m-20" / "settings.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "train_tokens": 1_146_880}))
    row, other = tables.folders(read_cells(folder)).rows
    assert row[4] == "2.00"
    assert other[4] == "not known"


def test_an_arm_without_results_is_named_as_waiting(folder: Path):
    write_run(folder / "bytes-0.1m-20", "gelu", FIRST_SEED, (1.5,), LENGTHS[-1:])
    cell = read_cell(folder / "bytes-0.1m-20")
    assert cell.waiting == ("gelu",)
    assert list(cell.arms) == ["swiglu", "poly_norm"]


def test_committed_runs_give_the_numbers_of_their_own_reports():
    for cell in read_cells(COMMITTED):
        results = json.loads((cell.root / "results.json").read_text())
        wanted = {c["arm"]: c for c in results["comparisons"] if c["budget"] == "tokens"}
        found = {d.arm: d for d in differences([cell]) if d.full}
        assert found.keys() == wanted.keys()
        for name, one in found.items():
            assert one.result is not None
            assert one.result.mean == pytest.approx(wanted[name]["result"]["mean"], abs=1e-12)
            assert one.result.high == pytest.approx(wanted[name]["result"]["high"], abs=1e-12)
            assert one.p_holm == pytest.approx(wanted[name]["p_holm"])
        rates = {arm["name"]: arm["rate"] for arm in results["arms"]}
        assert {name: arm.search.best for name, arm in cell.arms.items()} == rates
        flops = {arm["name"]: arm["cost"]["flops"] for arm in results["arms"]}
        assert {name: arm.flops for name, arm in cell.arms.items()} == flops


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "settings.json").unlink(), "holds no study"),
        (lambda root: (root / "settings.json").write_text("{}"), "not as a study has written it"),
        (lambda root: write_run(root, "swigloo", 0, (1.0,) * 3, LENGTHS), "Did you mean 'swiglu'"),
        (
            lambda root: (root / "runs/swiglu/lr0.006-seed0-steps560-1120-2240.json").write_text(
                ""
            ),
            "holds no finished run",
        ),
    ],
)
def test_what_cannot_be_reported_is_told_in_one_line(
    tmp_path: Path, change, message: str, capsys: pytest.CaptureFixture[str]
):
    root = study(tmp_path / "a", "bytes-0.1m", 2240, falling(2.0))
    change(root)
    assert compare.main(["report", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_searches_alone_are_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = study(tmp_path / "a", "bytes-0.1m", 2240, falling(2.0), seeds=0)
    assert compare.main(["report", str(root)]) == 2
    assert "only searches" in capsys.readouterr().err
