"""A study's own report, made again from what its folder holds."""

import json
from pathlib import Path

import pytest
from scaling_folders import COMMITTED, study, write_run

from experiments.compare import __main__ as compare
from experiments.compare import report
from experiments.compare.across.cells import read_cell
from experiments.compare.across.own_report import read_finished, stored_about
from experiments.compare.timing import TIMES
from experiments.terminal.tables import page
from polycom_jax import InputError

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


def test_a_report_of_more_seeds_than_all_arms_have_in_common_stays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert compare.main(["report", str(folder)]) == 0
    before = [(folder / name).read_bytes() for name in (report.TEXT, report.NUMBERS)]
    for seed in range(3):
        write_run(folder, "mish", seed, (2.0, 1.9, 1.8), LENGTHS)
    time_arms(folder, "swiglu", "poly_norm", "mish")
    capsys.readouterr()
    assert compare.main(["report", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "has 5 seeds of swiglu, poly_norm, and all arms with results (swiglu, poly_norm" in told
    assert [(folder / name).read_bytes() for name in (report.TEXT, report.NUMBERS)] == before
    assert compare.main(["report", str(folder), "--out", str(tmp_path / "other")]) == 0
    numbers = json.loads((tmp_path / "other" / report.NUMBERS).read_text())
    assert [len(arm["losses"]) for arm in numbers["arms"]] == [3, 3, 3]


def test_a_study_in_another_s_folders_stays_that_study(folder: Path):
    for seed in range(5):
        write_run(folder, "poly_norm_2", seed, (2.0, 1.9, 1.8), LENGTHS)
    time_arms(folder, "swiglu", "poly_norm", "poly_norm_2")
    assert read_finished(folder).findings.study == "rows"  # activations has no such arm
    (folder / "runs" / "poly_norm_2").rename(folder / "elsewhere")
    assert read_finished(folder).findings.study == "activations"
    told = {"about": {}, "study": "rows"}
    (folder / report.NUMBERS).write_text(json.dumps(told))
    assert read_finished(folder).study.question.startswith("Which row")


def test_the_seeds_that_are_told_are_those_of_the_report(folder: Path):
    about = {"command": "python -m experiments.compare activations", "seeds": "4"}
    (folder / report.NUMBERS).write_text(json.dumps({"about": about}))
    assert compare.main(["report", str(folder)]) == 0
    assert json.loads((folder / report.NUMBERS).read_text())["about"]["seeds"] == "5"


def test_nothing_is_told_of_a_machine_that_did_not_train(folder: Path):
    assert compare.main(["report", str(folder)]) == 0
    about = json.loads((folder / report.NUMBERS).read_text())["about"]
    assert about.keys() == {"command", "commit of the runs", "seeds"}


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_damaged_times_leave_the_report_over_lengths(
    folder: Path, content: str, capsys: pytest.CaptureFixture[str]
):
    (folder / TIMES).write_text(content)
    assert compare.main(["report", str(folder)]) == 0
    assert "timing.json is not as a study has written it" in capsys.readouterr().out
    assert (folder / "scaling.md").is_file()


def test_parameters_are_those_of_the_tokenizer_s_vocabulary(folder: Path):
    path = folder / "settings.json"
    stored = {**json.loads(path.read_text()), "data.tokenizer": "bpe"}
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="does not say how many ids the tokenizer has"):
        read_finished(folder)
    sizes = {}
    for size in (257, 1000):
        path.write_text(json.dumps({**stored, "vocab_size": size}))
        sizes[size] = read_finished(folder).findings.arms[0].cost.parameters
        assert read_cell(folder).arms["swiglu"].parameters == sizes[size]
    assert sizes[1000] - sizes[257] == 743 * 64
