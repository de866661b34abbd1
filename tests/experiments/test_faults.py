"""`experiments.faults`: what it draws, what it sees, and whole tortures."""

import itertools
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.faults import __main__ as faults
from experiments.faults.compare import _of_arrays, _of_lines, differences
from experiments.faults.run_attempt import PHASES, Plan, draw, live, phases


def test_a_comparison_sees_every_bit():
    one = {"a": np.array([1.0, np.nan, 0.0], np.float32), "b": np.arange(3)}
    same = {name: value.copy() for name, value in one.items()}
    assert _of_arrays(one, same) == []
    assert _of_arrays(one, same | {"a": np.array([1.0, np.nan, -0.0], np.float32)}) != []
    close = np.array([np.nextafter(np.float32(1), np.float32(0)), np.nan, 0.0], np.float32)
    assert _of_arrays(one, same | {"a": close})[0].startswith("array a:")
    assert _of_arrays(one, same | {"b": np.arange(3, dtype=np.int32)}) == [
        "array b: int64[3], int32[3]"
    ]
    assert _of_arrays(one, {"a": one["a"]}) == ["array b: in one run alone"]


def test_a_comparison_sees_every_line():
    one = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2, "heldout_loss": 0.3}]
    assert _of_lines(one, [dict(record) for record in one]) == []
    assert _of_lines(one, one[:1]) == ["metrics.jsonl: lines of steps [1, 2], [1]"]
    assert _of_lines(one, [one[0], one[0]]) == ["metrics.jsonl: lines of steps [1, 2], [1, 1]"]
    assert _of_lines(one, [one[0], {"step": 2, "loss": 0.2}]) == [
        "metrics.jsonl, step 2: heldout_loss"
    ]


def test_all_phases_are_aimed_at_as_often_as_they_should_be():
    count = sum(PHASES.values())
    for seed in range(20):
        drawn = phases(random.Random(seed))
        for _ in range(2):
            assert Counter(itertools.islice(drawn, count)) == PHASES
    first, second = (list(itertools.islice(phases(random.Random(s)), count)) for s in (0, 1))
    assert first != second


def test_moments_are_all_over_a_phase_and_both_signals_are_drawn():
    rng = random.Random(0)
    plans = [draw(rng, "train", 2.0, every=5) for _ in range(500)]
    assert {plan.number for plan in plans} == {signal.SIGKILL, signal.SIGTERM}
    assert {plan.times for plan in plans} == set(range(1, 9))
    assert max(plan.delay_s for plan in plans) <= 2 / 5
    plans = [draw(rng, "save", 2.0, every=5) for _ in range(500)]
    assert {plan.times for plan in plans} == {1, 2}
    assert 3.5 < max(plan.delay_s for plan in plans) <= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kills", "0"], "kills=0 must be at least 1"),
        (["--data.cache-dir", "w"], "data.cache_dir: prepared data lie in --out"),
        (["--kils", "3"], "Did you mean"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert faults.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes.txt").write_text("mine")
    assert faults.main(["--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_its_help_says_how_to_name_a_bucket_and_an_emulator(capsys: pytest.CaptureFixture[str]):
    assert faults.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "gs://BUCKET/PATH" in said
    assert "STORAGE_EMULATOR_HOST=http://HOST:PORT" in said


@pytest.mark.slow
def test_a_run_killed_time_and_again_comes_to_the_same_bits(
    settings: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Behind the evaluation of step 3, and amid a save."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {EIGHT}")
    folder = tmp_path / "w"
    words = ["--config", str(settings), "--workdir", str(folder)]
    for plan in (Plan("train", 3, 0.0), Plan("save", 1, 0.01)):
        life = live(words, folder, plan)
        assert life.killed
    assert not live(words, folder, None).killed
    assert differences(whole, folder) == []


EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["a mixture, in micro-batches", "on eight devices, split"])
def test_torture(
    case: str,
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    text = settings.read_text()
    words = ["--steps", "12", "--kills", "4", "--out", str(tmp_path / "out")]
    if case.startswith("on eight"):
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {EIGHT}")
        words += ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    else:
        text = text.replace("preset: tiny", "preset: moe-tiny")
        words += ["--optim.accumulation-steps", "2"]
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert faults.main(["--config", str(config), *words]) == 0
    assert "4 of 4 kills left no trace" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "faults.json").read_text())
    assert [kill["number"] for kill in record["kills"]] == [1, 2, 3, 4]
    assert not any(record["differences"].values())
    assert "| 4 |" in (tmp_path / "out" / "faults.md").read_text()


@pytest.mark.exhaustive
def test_torture_in_a_bucket(
    settings: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--steps", "12", "--kills", "4", "--out", str(tmp_path / "out")]
    words += ["--workdir", f"{bucket}/faults"]
    assert faults.main(["--config", str(settings), *words]) == 0
    assert "4 of 4 kills left no trace" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "faults.json").read_text())["about"]
    assert about["STORAGE_EMULATOR_HOST"].startswith("http://127.0.0.1:")
