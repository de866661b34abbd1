"""The leaderboard: from whatever runs are there, and with a row that one command adds."""

import json
import statistics
from pathlib import Path

import pytest
from scaling_folders import COMMITTED, STEP_TOKENS, study, write_run
from test_compare_findings import SMALL

from experiments.compare import __main__ as compare
from experiments.compare import concluding, config, timing
from experiments.compare.across.cells import read_cell
from experiments.compare.across.leaderboard import LeaderboardConfig, study_of
from experiments.run.rate_search import FIRST_SEED

LOSSES = {"swiglu": 1.6, "poly_norm": 1.58, "relu2": 1.62}


def test_rows_are_ordered_by_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arms = {name: lambda d, loss=loss: loss for name, loss in LOSSES.items()}
    root = study(tmp_path / "a", "bytes-0.3m", 7040, arms, sd=0.001)
    assert compare.main(["leaderboard", str(root), "--json=-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["arm"] for row in rows] == ["poly_norm", "swiglu", "relu2"]
    assert rows[0]["difference"]["result"]["mean"] == pytest.approx(-0.02, abs=0.003)
    assert rows[1]["difference"] is rows[0]["seconds"] is None
    for row in rows:
        finals = [run.final for run in read_cell(root).arms[row["arm"]].runs.values()]
        assert row["loss"] == pytest.approx(statistics.mean(finals))
        assert row["sd"] == pytest.approx(statistics.stdev(finals))
    assert rows[0]["flops"] > rows[1]["flops"] > 1e6
    text = (root / "leaderboard.md").read_text()
    assert f"{7040 * STEP_TOKENS:,} tokens (20 a parameter)" in text
    assert "Figures" not in text


def test_times_are_of_the_middle_round_and_relative_to_the_fastest_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arms = {name: lambda d, loss=loss: loss for name, loss in LOSSES.items()}
    root = study(tmp_path / "a", "bytes-0.3m", 7040, arms, sd=0.001)
    write_run(root, "gelu", FIRST_SEED, (1.5,), (7040,))  # searched, without results
    rounds = {"gelu": 0.001, "swiglu": 0.002, "poly_norm": 0.004}
    seconds = {name: [each, each, 11 * each] for name, each in rounds.items()}
    (root / "timing.json").write_text(json.dumps({"seconds": seconds, "memory": {}}))
    assert compare.main(["leaderboard", str(root), "--json=-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    times = {row["arm"]: (row["seconds"], row["relative"]) for row in rows}
    assert times == {"swiglu": (0.002, 1), "poly_norm": (0.004, 2), "relu2": (None, None)}
    text = (root / "leaderboard.md").read_text()
    assert "| 2.0 | 1.000 |" in text
    assert "| 4.0 | 2.000 |" in text


def test_rows_of_different_seeds_are_said_to_be(tmp_path: Path):
    arms = {name: lambda d, loss=loss: loss for name, loss in LOSSES.items()}
    root = study(tmp_path / "a", "bytes-0.3m", 7040, arms, sd=0.001)
    assert compare.main(["leaderboard", str(root)]) == 0
    assert "different seeds" not in (root / "leaderboard.md").read_text()
    # One seed that goes badly, which the row behind has not run: by its mean it is ahead.
    write_run(root, "poly_norm", 5, (2.0, 2.0, 2.0), (1760, 3520, 7040))
    assert compare.main(["leaderboard", str(root)]) == 0
    text = (root / "leaderboard.md").read_text()
    assert "| 3 | poly_norm |" in text
    assert "| -0.0" in text
    assert "Rows have different seeds" in text


def test_rows_of_which_a_run_diverged_come_last_and_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arms = {name: lambda d, loss=loss: loss for name, loss in {**LOSSES, "gelu": 1.7}.items()}
    root = study(tmp_path / "a", "bytes-0.3m", 7040, arms, sd=0.001)
    lengths = (1760, 3520, 7040)
    for seed in range(1, 5):
        write_run(root, "poly_norm", seed, (), lengths, diverged=True)
    for seed in range(5):
        write_run(root, "gelu", seed, (), lengths, diverged=True)
    assert compare.main(["leaderboard", str(root), "--json=-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["arm"] for row in rows] == ["swiglu", "relu2", "poly_norm", "gelu"]
    assert [(row["seeds"], row["diverged"]) for row in rows] == [(5, 0), (5, 0), (1, 4), (0, 5)]
    assert rows[3]["loss"] is None
    assert rows[2]["difference"]["result"] is None
    text = (root / "leaderboard.md").read_text()
    assert "| 1 | 4 | - | not comparable: 4 of 5 diverged |" in text
    assert "| 4 | gelu | - | - | 0 | 5 | - | not comparable: 5 of 5 diverged |" in text


def test_committed_runs_have_a_leaderboard_with_step_times(tmp_path: Path):
    folder = str(COMMITTED / "bytes-0.1m-20")
    assert compare.main(["leaderboard", folder, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "leaderboard.json").read_text())["rows"]
    assert rows[0]["arm"] == "poly_norm"
    assert all(row["seconds"] > 0 and row["relative"] >= 1 for row in rows)
    assert min(row["relative"] for row in rows) == 1


def test_an_added_row_has_the_folder_s_settings_and_seeds():
    folder = COMMITTED / "bytes-0.1m-20"
    config = LeaderboardConfig(str(folder), add=("silu",), data="else/where.jsonl.xz")
    found = study_of(config, folder)
    assert found.arms == (
        *("swiglu", "relu2", "gelu", "poly_relu", "poly_norm", "poly_norm_glu", "xielu"),
        *("poly_norm_2", "silu"),
    )  # fmt: skip
    assert (found.model, found.steps, found.seeds, found.search_seeds) == (
        "bytes-0.1m", 2240, 8, 2,
    )  # fmt: skip
    assert found.data.source == "else/where.jsonl.xz"
    assert found.data.heldout == "techdocs-validation.jsonl.xz"


def test_a_new_leaderboard_has_20_tokens_for_each_of_0_36m_parameters(tmp_path: Path):
    found = study_of(LeaderboardConfig(add=("relu2",)), tmp_path / "new")
    assert (found.model, found.steps, found.seeds) == ("bytes-0.3m", 7040, 5)
    assert found.arms == ("swiglu", "relu2")


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "holds no study"), (["--add", "poly_nrm"], "Did you mean 'poly_norm'")],
)
def test_misuse_is_told_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert compare.main(["leaderboard", str(tmp_path / "none"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_one_command_adds_a_row(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(config.SHAPES, "bytes-0.1m", SMALL)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(concluding.figures, "draw_all", lambda *args: [])
    root, text = tmp_path / "w", settings.parent / "little.txt"
    common = ["--data.document-bytes", "2000", "--seq-len", "16", "--heldout-tokens", "64"]
    begin = [
        "rows", "--arms", "swiglu", "poly_norm", "--model", "bytes-0.1m", "--data", str(text),
        "--search-seeds", "1", "--steps", "8", "--seeds", "2", *common, "--out", str(root),
    ]  # fmt: skip
    assert compare.main(begin) == 0
    assert compare.main(["leaderboard", str(root), "--add", "relu2"]) == 0
    rows = json.loads((root / "leaderboard.json").read_text())["rows"]
    assert {row["arm"]: row["seeds"] for row in rows}.keys() == {"swiglu", "poly_norm", "relu2"}
    assert len({row["seeds"] for row in rows}) == 1
    assert all(row["seconds"] > 0 for row in rows)
