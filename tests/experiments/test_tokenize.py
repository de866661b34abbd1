"""Tokenising by worker processes, some of which are killed, and by what else there is."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.tokenize import __main__ as tokenize
from experiments.tokenize import executors, workers
from polycom_jax import InputError, storage
from polycom_jax.data import Corpus, DataConfig, prepare
from polycom_jax.data.pieces import Job
from polycom_jax.data.preparing import begin
from polycom_jax.data.request import request

LINES = "".join(f'{{"text": "document {i}: {"word " * (i % 11)}"}}\n' for i in range(3_000))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(LINES)
    return path


def words(source: Path, cache: Path, *more: str) -> list[str]:
    return ["--data", str(source), "--cache-dir", str(cache), "--tokenizer", "bytes", *more]


def whole(source: Path, cache: Path) -> Corpus:
    return prepare(DataConfig(str(source), "bytes", cache_dir=str(cache)), vocab_size=300)


def assert_same(found: Corpus, expected: Corpus) -> None:
    assert found.fingerprint == expected.fingerprint
    assert found.summary == expected.summary
    for split in ("train", "heldout"):
        pair = [getattr(corpus, split).tokens.tobytes() for corpus in (found, expected)]
        assert pair[0] == pair[1]


def killed(signal_number: int, times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the first `times` workers that are given a piece be killed at it; returns the pieces."""
    pieces: list[int] = []
    give = workers.Worker.give

    def give_and_kill(worker: workers.Worker, piece: int) -> None:
        give(worker, piece)
        if len(pieces) < times:
            pieces.append(piece)
            os.kill(worker.process.pid, signal_number)

    monkeypatch.setattr(workers.Worker, "give", give_and_kill)
    return pieces


def test_by_workers_of_which_some_are_killed_the_tokens_are_the_same(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    lost = killed(signal.SIGKILL, 2, monkeypatch)
    more = ("--workers", "2", "--piece-bytes", "9000")
    assert tokenize.main(words(source, tmp_path / "c", *more)) == 0
    assert len(lost) == 2
    out = capsys.readouterr().out
    assert "pieces," in out
    assert ": 100 %" in out
    assert "left" in out
    (index,) = (tmp_path / "c").glob("tokens/*/index.json")
    stamp = index.stat().st_mtime_ns
    found = whole(source, tmp_path / "c")  # finds everything prepared
    assert index.stat().st_mtime_ns == stamp
    assert len(list(index.parent.glob("train/*.bin"))) > 10
    assert_same(found, whole(source, tmp_path / "d"))
    assert tokenize.main(words(source, tmp_path / "c", *more)) == 0
    assert "Tokenising" not in capsys.readouterr().out


def test_workers_read_text_from_a_bucket_and_write_to_it(
    tmp_path: Path, source: Path, bucket: str, capsys: pytest.CaptureFixture[str]
):
    text = f"{bucket}/text/texts.jsonl"
    storage.write(storage.place(text), source.read_bytes())
    more = ("--workers", "2", "--piece-bytes", "60000")
    words = ["--data", f"{bucket}/text/*.jsonl", "--cache-dir", f"{bucket}/c", *more]
    assert tokenize.main([*words, "--tokenizer", "bytes"]) == 0, capsys.readouterr().err
    cfg = DataConfig(f"{bucket}/text/*.jsonl", "bytes", cache_dir=f"{bucket}/c")
    said: list[str] = []
    found = prepare(cfg, vocab_size=300, progress=said.append)
    assert said == []
    expected = whole(source, tmp_path / "d")
    for split in ("train", "heldout"):
        pair = [getattr(corpus, split).tokens.tobytes() for corpus in (found, expected)]
        assert pair[0] == pair[1]
    assert not list(tmp_path.rglob("*gs:*"))


def test_a_piece_that_ends_every_worker_is_named(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    killed(signal.SIGKILL, 99, monkeypatch)
    assert tokenize.main(words(source, tmp_path / "c", "--workers", "1")) == 2
    error = capsys.readouterr().err
    assert "3 workers ended over piece 0, the last with code -9" in error
    assert "--workers" in error
    assert not list((tmp_path / "c").glob("tokens/*/index.json"))


def test_what_a_worker_cannot_read_is_told_as_ever(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
):
    source.write_text(LINES + "{\n")
    assert tokenize.main(words(source, tmp_path / "c", "--workers", "1")) == 2
    error = capsys.readouterr().err
    assert "texts.jsonl, line 3001 is not JSON" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "0"], "workers=0 must be at least 1"),
        (["--piece-bytes", "0"], "piece_bytes=0 must be at least 1"),
        (["--slurm-partition", "p"], "Slurm needs a partition, and nothing else takes one"),
        (["--executor", "slurm"], "Slurm needs a partition"),
        (["--executor", "cloud"], "expected one of local, datatrove-local, slurm, ray"),
        (["--data.batch-size", "4"], "data.batch_size: tokens do not depend on it"),
    ],
)
def test_wrong_flags_are_told_in_a_line(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
):
    assert tokenize.main(words(source, tmp_path / "c", *more)) == 2
    assert message in capsys.readouterr().err


def test_a_bpe_is_asked_for_by_its_size(source: Path, tmp_path: Path, monkeypatch, capsys):
    def asked(data: DataConfig, vocab_size: int, report: object) -> None:
        raise InputError(f"{data.tokenizer} of {vocab_size}.")

    monkeypatch.setattr(tokenize, "requests", asked)
    command = ["--data", str(source), "--cache-dir", str(tmp_path), "--vocab-size", "290"]
    assert tokenize.main(command) == 2
    assert capsys.readouterr().err == "error: bpe of 290.\n"


@pytest.fixture
def job(tmp_path: Path, source: Path) -> Job:
    cfg = DataConfig(str(source), "bytes", cache_dir=str(tmp_path / "c"))
    asked = request(cfg, 300, lambda message: None)
    return begin(asked, lambda message: None, 20_000)[0]


def test_an_executor_runs_a_task_for_each_piece(job: Job, monkeypatch: pytest.MonkeyPatch):
    """One that is called as datatrove's are."""
    given: dict[str, Any] = {}

    class Executor:
        def __init__(self, **options: Any) -> None:
            given.update(options)

        def run(self) -> None:
            (step,) = given["pipeline"]
            for rank in range(given["tasks"]):
                step(None, rank=rank, world_size=given["tasks"])

    monkeypatch.setitem(executors.CLASSES, "slurm", ("stands_in", "Executor"))
    monkeypatch.setitem(sys.modules, "stands_in", _module(Executor))
    executors.tokenise(job, job.missing(), "slurm", workers=3, options={"time": "1:00:00"})
    assert given["tasks"] == len(job.plan.pieces) > 5
    assert (given["workers"], given["time"], given["skip_completed"]) == (3, "1:00:00", False)
    assert job.missing() == []


def _module(kind: type) -> Any:
    return SimpleNamespace(Executor=kind)


def test_an_executor_that_is_not_installed_is_named(job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datatrove.executor.ray", None)
    with pytest.raises(InputError, match=r"needs datatrove .*polycom-jax\[tokenize\]"):
        executors.tokenise(job, [0], "ray", workers=1, options={})
