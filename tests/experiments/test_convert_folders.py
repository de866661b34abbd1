"""What `convert` and its like make of folders that others write to, and of flags of runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from shapes import TINY

from experiments.convert import __main__ as convert
from experiments.run.folder import Workdir
from experiments.run.hf_tokenizer import save_tokenizer
from experiments.run.model_loading import load_model
from polycom_jax import models
from polycom_jax.data import ByteTokenizer
from polycom_jax.interop import huggingface


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of random weights that reads bytes."""
    path = tmp_path_factory.mktemp("given") / "folder"
    cfg = replace(TINY, vocab_size=257)
    huggingface.save(path, cfg, models.init(cfg, jax.random.key(0)), end_of_text=256)
    save_tokenizer(path, ByteTokenizer(), context_length=32)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_folder_that_another_program_writes_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with Workdir(tmp_path / "new").locked("--out"):
        assert convert.main([str(folder), "--out", str(tmp_path / "new")]) == 2
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    assert "is writing to" in said(capsys)
    assert convert.main([str(folder), "--out", str(tmp_path / "new")]) == 0
    assert not (tmp_path / "new" / ".lock").exists()


@pytest.mark.parametrize(
    ("words", "file"),
    [(["--out"], "tokenizer.json"), (["--data", "stdlib", "--workdir"], "config.yaml")],
)
def test_what_another_program_has_written_meanwhile_stays(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    file: str,
):
    new, real = tmp_path / "new", convert.load_model

    def slow(*given: Any, **how: Any) -> Any:
        new.mkdir()
        (new / file).write_text("of another program")
        return real(*given, **how)

    monkeypatch.setattr(convert, "load_model", slow)
    assert convert.main([str(folder), *words, str(new)]) == 2
    assert "already" in said(capsys)
    assert {path.name: path.read_text() for path in new.iterdir()} == {file: "of another program"}


def test_a_checkpoint_of_a_folder_that_has_none_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [str(folder), "--out", str(tmp_path / "new"), "--checkpoint", "best"]
    assert convert.main(words) == 2
    assert "--checkpoint best" in said(capsys)
    assert not (tmp_path / "new").exists()


def test_beside_runs_it_is_told_that_a_checkpoint_is_not_of_such_a_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    load_model(folder)
    assert said(capsys) == ""
    load_model(folder, "best")
    assert "--checkpoint best" in said(capsys)
