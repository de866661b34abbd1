"""A study's own report, made again from what its folder holds."""

import json
from pathlib import Path

import pytest
from scaling_folders import COMMITTED, study, write_run

from experiments.compare import __main__ as compare
from experiments.compare import report
from experiments.compare.across.own_report import read_finished, stored_about
from experiments.compare.timing import TIMES
from experiments.terminal.tables import page

LENGTHS = (560, 1120, 2240)
LOSSES = {"swiglu": lambda d: 2.0 - d / 1e7, "poly_norm": lambda d: 1.9 - d / 1e7}
STUDIES = sorted(path.parent for path in COMMITTED.parent.rglob(TIMES))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = study(tmp_path / "a", "bytes-0.1m", 2240, LOSSES, sd=0.002)
    time_arms(root, "swiglu", "poly_norm")
    return root


def time_arms(root: Path, *arms: str) -> None:
    seconds = {arm: [0.1 + 0.01 * i, 0.1] for i, arm in enumerate(arms)}
    memory = dict.fromkeys(arms, 1 << 20)
    (root / TIMES).write_text(json.dumps({"seconds": seconds, "memory": memory}))


def test_there_are_committed_studies():
    assert len(STUDIES) >= 8


@pytest.mark.parametrize("root", STUDIES, ids=lambda root: root.name)
def test_committed_reports_are_those_of_their_run_files(root: Path):
    done = read_finished(root)
    about = {**stored_about(root), "commit of the runs": done.commits}
    if "commit of the runs" not in stored_about(root):
        del about["commit of the runs"]  # the report is of before there was such a line
    title = f"{done.findings.study}: {done.study.question}"
    text = page(title, about, report.sections(done.findings), ())
    assert (root / report.TEXT).read_text().startswith(text)


def test_it_is_written_beside_the_report_over_lengths_and_keeps_where_its_numbers_come_from(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    about = {"command": "python -m experiments.compare activations", "processor": "an abacus"}
    (folder / report.NUMBERS).write_text(json.dumps({"about": about}))
    assert compare.main(["report", str(folder)]) == 0
    text = (folder / report.TEXT).read_text()
    for words in ("an abacus", "| poly_norm | swiglu | -0.1", "Differences at equal seconds"):
        assert words in text
    numbers = json.loads((folder / report.NUMBERS).read_text())
    assert [len(arm["losses"]) for arm in numbers["arms"]] == [5, 5]
    assert numbers["about"] == {**about, "commit of the runs": "abc"}
    assert (folder / "scaling.md").is_file()
    told = capsys.readouterr().out
    assert "What each arm costs" in told
    assert "Differences at equal tokens, full lengths" in told


def test_seeds_of_a_stopped_study_are_those_that_all_arms_have(folder: Path):
    write_run(folder, "swiglu", 5, (2.0, 1.9, 1.8), LENGTHS)
    write_run(folder, "swiglu", 7, (2.0, 1.9, 1.8), LENGTHS)
    write_run(folder, "poly_norm", 7, (2.0, 1.9, 1.8), LENGTHS)
    done = read_finished(folder)
    assert {arm: [run.key.seed for run in runs] for arm, runs in done.runs.items()} == {
        "swiglu": [0, 1, 2, 3, 4], "poly_norm": [0, 1, 2, 3, 4]
    }  # fmt: skip
    assert done.config.seeds == 5


def test_rows_that_were_added_are_arms_of_it(folder: Path):
    for seed in range(5):
        write_run(folder, "mish", seed, (2.0, 1.9, 1.8), LENGTHS)
    time_arms(folder, "swiglu", "poly_norm", "mish")
    found = read_finished(folder).findings
    assert [arm.name for arm in found.arms] == ["swiglu", "poly_norm", "mish"]
    assert {c.arm for c in found.comparisons} == {"poly_norm", "mish"}


def test_without_all_times_there_is_the_report_over_lengths_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    time_arms(folder, "swiglu")
    assert compare.main(["report", str(folder)]) == 0
    assert "has no times of poly_norm" in capsys.readouterr().out.replace("\n", " ")
    assert (folder / "scaling.md").is_file()
    assert not (folder / report.TEXT).exists()


def test_a_damaged_report_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / report.NUMBERS).write_text("{}")
    assert compare.main(["report", str(folder)]) == 2
    assert "results.json is not as a study has written it" in capsys.readouterr().err


def test_a_study_without_the_reference_has_its_own_report_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arms = {"swiglu_adamw": LOSSES["swiglu"], "poly_norm_adamw": LOSSES["poly_norm"]}
    root = study(tmp_path / "a", "bytes-0.1m", 2240, arms)
    stored = json.loads((root / "settings.json").read_text())
    (root / "settings.json").write_text(json.dumps({**stored, "study": "optimizers"}))
    assert compare.main(["report", str(root)]) == 2
    assert "has no times of swiglu_adamw, poly_norm_adamw" in capsys.readouterr().err
    time_arms(root, *arms)
    assert compare.main(["report", str(root), "--json=-"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "optimizers"
    assert not (root / "scaling.md").exists()
