"""Local files as a source: what is held out of little text, and what may not be."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from polycom_jax import InputError
from polycom_jax._errors import InputWarning
from polycom_jax.data import Corpus, DataConfig, heldout, prepare


def prose(size: int) -> str:
    lines = (f"line {i} of a text that goes on and on\n" for i in range(size))
    return "".join(lines)[:size]


def made(tmp_path: Path, source: Any, **changes: Any) -> Corpus:
    cfg = DataConfig(str(source), "bytes", cache_dir=str(tmp_path / "cache"), **changes)
    return prepare(cfg, vocab_size=300)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("size", [20_000, 70_000, 1_000_000])
def test_of_a_file_of_any_size_a_small_part_is_held_out(tmp_path: Path, size: int):
    found = made(tmp_path, written(tmp_path / "a.txt", prose(size)))
    kept, apart = (found.summary[split]["bytes"] for split in ("train", "heldout"))
    assert kept + apart == size
    assert 0 < apart / size < 0.15


def test_pieces_are_no_longer_than_was_asked_for_and_none_is_cut_for_files_held_out(tmp_path: Path):
    path = written(tmp_path / "a.txt", prose(70_000))
    other = written(tmp_path / "b.txt", "other text\n")
    lines = written(tmp_path / "c.jsonl", json.dumps({"text": prose(2_000)}))
    sizes = [
        made(tmp_path, path).summary["document_bytes"],
        made(tmp_path, path, document_bytes=500).summary["document_bytes"],
        made(tmp_path, path, heldout=str(other)).summary["document_bytes"],
        made(tmp_path, lines, heldout=str(other)).summary["document_bytes"],
    ]
    assert sizes == [heldout.SMALLEST_PIECE, 500, 65_536, 65_536]


def test_a_large_corpus_is_cut_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heldout, "PIECES", 3)
    found = made(tmp_path, written(tmp_path / "a.txt", prose(300_000)))
    assert found.summary["document_bytes"] == 65_536


@pytest.mark.parametrize("how", ["same path", "glob", "link", "copy"])
def test_a_file_to_train_on_is_not_held_out(tmp_path: Path, how: str):
    path = written(tmp_path / "a.txt", prose(3_000))
    other = tmp_path / "b.txt"
    if how == "link":
        other.symlink_to(path)
    elif how == "copy":
        other.write_bytes(path.read_bytes())
    heldout = {"same path": f"{tmp_path}/./a.txt", "glob": f"{tmp_path}/*.txt"}.get(how, str(other))
    with pytest.raises(InputError, match=r"data\.heldout: .*\.txt is in data\.source too"):
        made(tmp_path, path, heldout=heldout)


def test_names_of_a_file_that_is_read_already_are_told(tmp_path: Path):
    path = written(tmp_path / "a.txt", prose(30_000))
    os.link(path, tmp_path / "b.txt")
    found = made(tmp_path, tmp_path / "*.txt")
    assert found.summary["train"]["bytes"] + found.summary["heldout"]["bytes"] == 30_000
    assert found.treated == "1 more name of the same files left out"
    assert found.fingerprint == made(tmp_path, path).fingerprint


def test_files_whose_names_are_no_utf8_are_prepared(tmp_path: Path):
    folder = os.fsencode(tmp_path)
    for index in range(3):
        Path(os.fsdecode(folder + b"/caf\xe9%d.txt" % index)).write_text(prose(9_000 + index))
    found = made(tmp_path, tmp_path / "*.txt")
    assert sorted(found.summary["files"]) == [rf"{tmp_path}/caf\xe9{i}.txt" for i in range(3)]
    json.dumps(found.summary).encode()


def test_files_held_out_are_noted_apart(tmp_path: Path):
    path = written(tmp_path / "a.txt", prose(3_000))
    other = written(tmp_path / "b.txt", "other text\n")
    found = made(tmp_path, path, heldout=str(other))
    assert set(found.summary["files"]) == {str(path)}
    assert set(found.summary["heldout_files"]) == {str(other)}


def test_a_file_that_is_no_text_is_told_though_it_was_prepared_before(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(40)))
    made(tmp_path, path)
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        made(tmp_path, path, damaged="skip")


def test_text_in_another_encoding_is_refused_and_a_few_letters_of_one_are_counted(tmp_path: Path):
    russian = "".join(f"Река поёт под камнем {i}.\n" for i in range(300))
    path = tmp_path / "a.txt"
    path.write_bytes(russian.encode("cp1251"))
    with pytest.raises(InputError, match=r"a\.txt: \d+% of the text is not UTF-8; convert it"):
        made(tmp_path, path)
    path.write_bytes("".join(f"Über Stein {i} fließt er.\n" for i in range(300)).encode("latin-1"))
    with pytest.warns(InputWarning, match=r"a\.txt: \d+% of the text is U\+FFFD .* -f UTF-16LE"):
        found = made(tmp_path, path)
    assert "undecodable bytes replaced" in found.treated
    given_back = found.train.num_bytes + found.heldout.num_bytes
    assert given_back == path.stat().st_size - 2 * 300  # but for two signs a line
    with pytest.warns(InputWarning):  # and when it is found prepared
        made(tmp_path, path)
