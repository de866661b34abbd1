"""`experiments.pretrain` from end to end: whole runs, killed runs, resumed ones."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from commands import copied

from experiments import generate
from experiments.pretrain import __main__ as pretrain
from experiments.run.config import RunConfig
from experiments.run.folder import Workdir
from experiments.run.metrics import MetricsFile, read_metrics
from experiments.run.step_metrics import Meter
from polycom_jax.data import ByteTokenizer
from polycom_jax.training import latest_step

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ("step", "loss", "grad_norm", "learning_rate", "heldout_loss", "bits_per_byte")
Run = Callable[..., int]


def numbers(workdir: Path) -> list[dict[str, Any]]:
    """What must be equal digit for digit: the lines of metrics.jsonl without their times."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k in COMPARED} for record in records]


def test_a_run_leaves_its_files(whole: Path):
    names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert {
        *("config.yaml", "tokenizer.json", "metrics.jsonl", "sample.txt"),
        *("plots/loss.png", "plots/loss.pdf", "plots/activations.png", "plots/activations.pdf"),
    } <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert latest_step(whole / "checkpoints") == 6
    sample = (whole / "sample.txt").read_text()
    assert sample.startswith("def ")


def test_metrics_have_one_line_a_step_with_its_evaluation_if_it_had_one(whole: Path):
    records = read_metrics(whole / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 6]
    for record in records:
        assert {"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(record)
    heldout = [r for r in records if "heldout_loss" in r]
    assert [r["step"] for r in heldout] == [3, 6]
    # Bits a byte count every held-out byte; a byte-level model has a token more a document.
    data = Workdir(whole).record()["data"]["heldout"]
    last = heldout[-1]
    bits = last["heldout_loss"] / np.log(2) * (data["tokens"] - 1) / data["bytes"]
    assert last["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    assert records[-1]["loss"] < records[0]["loss"]


def test_the_config_says_what_really_ran(whole: Path):
    tree = yaml.safe_load((whole / "config.yaml").read_text())
    assert tree["model"]["vocab_size"] == ByteTokenizer.vocab_size
    assert tree["optim"]["decay_steps"] == 6
    assert tree["record"]["filled_in"] == ["model.vocab_size", "optim.decay_steps"]
    assert tree["record"]["jax"] == jax.__version__
    assert tree["record"]["data_fingerprint"]


def test_a_finished_run_says_so_and_touches_nothing(
    run: Run, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    monkeypatch.setattr("experiments.run.corpus.prepare_mixture", None)  # a call of it would fail
    assert run(whole) == 0
    assert "Finished" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert after | {whole / ".lock": 0} == before | {whole / ".lock": 0}


def test_a_report_that_was_cut_short_is_made_again_from_the_folder_alone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workdir = copied(whole, tmp_path / "w")
    for path in (workdir / "sample.txt", *(workdir / "plots").iterdir()):
        path.unlink()
    monkeypatch.setattr("experiments.run.corpus.prepare_mixture", None)  # a call of it would fail
    monkeypatch.setattr("experiments.run.compiled.make_model_step", None)
    words = ["--config", str(workdir / "config.yaml"), "--workdir", str(workdir)]
    assert pretrain.main(words) == 0
    assert (workdir / "sample.txt").read_bytes() == (whole / "sample.txt").read_bytes()
    names = {path.name for path in (workdir / "plots").iterdir()}
    assert names == {path.name for path in (whole / "plots").iterdir()}


def test_the_sample_is_the_last_file_and_goes_when_training_goes_on(
    run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workdir = Workdir(tmp_path / "w")
    shutil.copytree(whole, workdir.root)

    def killed(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("experiments.run.report.draw_shapes", killed)
    with pytest.raises(ZeroDivisionError):
        run(workdir.root, "--steps", "7")
    assert not workdir.sample.exists()


def test_a_full_disk_ends_the_run_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsFile, "write", full)
    assert run(tmp_path) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_other_settings_are_refused_and_touch_nothing(
    run: Run, whole: Path, capsys: pytest.CaptureFixture[str]
):
    before = (whole / "metrics.jsonl").read_bytes()
    assert run(whole, "--seed", "7", "--steps", "9") == 2
    error = capsys.readouterr().err
    assert "run.seed: 0 there, 7 now" in error
    assert error.count("\n") == 1
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_killed_run_resumes_to_the_same_numbers(
    settings: Path, whole: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # The process dies while step 5 is logged: the checkpoint of step 2 is complete by then (that
    # of step 4 waits for it), and lines of later steps are in the file.
    code = f"""
        import os, signal, sys
        import jax
        jax.config.update("jax_num_cpu_devices", {jax.device_count()})
        from experiments.pretrain import __main__ as pretrain
        from experiments.run.step_metrics import Meter
        read = Meter._read
        def die(self, step, *rest):
            read(self, step, *rest)
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        Meter._read = die
        pretrain.main(sys.argv[1:])
    """
    command = ["--config", str(settings), "--workdir", str(tmp_path / "w")]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    workdir = tmp_path / "w"
    reached = latest_step(workdir / "checkpoints")
    assert reached in (2, 4)
    assert numbers(workdir)[-1]["step"] == 4
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # as a kill amid writing leaves it
    assert run(workdir) == 0
    assert f"resumed from the checkpoint of step {reached}" in capsys.readouterr().out
    assert numbers(workdir) == numbers(whole)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    whole: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    read = Meter._read

    def interrupt(self: Meter, step: int, *rest: Any) -> None:
        read(self, step, *rest)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "_read", interrupt)
        assert run(tmp_path) == 130
    # A thread takes the signal: the loop hears of it behind this step or the next.
    said = re.search(r"stopped by SIGINT, saved at step ([34]);", capsys.readouterr().err)
    assert said
    assert latest_step(tmp_path / "checkpoints") == int(said[1])
    honest = pretrain.facts
    monkeypatch.setattr(pretrain, "facts", lambda run: honest(run) | {"cores": "3 or so"})
    assert run(tmp_path) == 0
    cores = honest(RunConfig())["cores"]
    warning = f"up to rounding: cores {cores!r} before, '3 or so' now\n"
    assert warning in capsys.readouterr().out
    assert numbers(tmp_path) == numbers(whole)


@pytest.mark.slow
def test_a_longer_run_goes_on_and_keeps_the_end_of_the_schedule(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    # So little text gives a smaller BPE than is asked for: it has to be found again.
    bpe = ("--data.tokenizer", "bpe")
    assert run(tmp_path, *bpe, "--steps", "4") == 0
    assert run(tmp_path, *bpe, "--steps", "6", "--log-every", "1") == 0
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["learning_rate"] == records[-3]["learning_rate"]
    config = Workdir(tmp_path).read_config()
    assert (config.run.steps, config.optim.decay_steps) == (6, 4)
    assert config.model.vocab_size < Workdir(tmp_path).record()["vocab_size_asked"]
    # The BPE lies in the folder: writing needs nothing else.
    monkeypatch.setenv("POLYCOM_CACHE", "/dev/null")
    assert generate.main([str(tmp_path), "--max-new-tokens", "3"]) == 0
    assert "learning rate falling until step 4" in capsys.readouterr().out


def test_a_folder_without_checkpoints_is_begun_anew(run: Run, whole: Path, tmp_path: Path):
    Workdir(tmp_path).write_config(Workdir(whole).read_config(), {})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    assert run(tmp_path, "--seed", "5") == 0
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 6]
    assert Workdir(tmp_path).read_config().run.seed == 5


@pytest.mark.slow
def test_the_mesh_changes_no_number_beyond_rounding(run: Run, whole: Path, tmp_path: Path):
    assert run(tmp_path, "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2") == 0
    for ours, theirs in zip(numbers(tmp_path), numbers(whole), strict=True):
        # A float32 loss is rounded to 1e-7 of itself. Adam turns a gradient's relative error into
        # the same one of an update of at most 5e-3, save where the gradient is nearly nothing: each
        # of six steps adds below 1e-6 to what weights of 0.1 to 1, and thus all these, are off.
        assert ours == pytest.approx(theirs, rel=5e-6)


def test_a_finished_run_is_named_alone(whole: Path, capsys: pytest.CaptureFixture[str]):
    assert pretrain.main([str(whole)]) == 0
    assert f"Finished: {whole} has 6 steps" in " ".join(capsys.readouterr().out.split())


def test_fewer_steps_than_a_run_has_change_nothing(whole: Path, capsys: pytest.CaptureFixture[str]):
    assert pretrain.main([str(whole), "--steps", "4"]) == 0
    told = capsys.readouterr().out
    assert "Finished:" in told
    assert "changed" not in told
