"""Where one file of many is mended, only pieces that it is in, or was in, are tokenised again.

The end of a file and the beginning of the next may share a piece.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from corpora import contents, json_lines, texts

from polycom_jax import storage
from polycom_jax.data import Corpus, DataConfig, pieces
from polycom_jax.data.corpus import open_prepared
from polycom_jax.data.preparing import Team, make
from polycom_jax.data.request import request

PIECE_BYTES = 1_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files, each of which is more than a piece."""
    (tmp_path / "text").mkdir()
    for name in "abcde":
        (tmp_path / "text" / f"{name}.jsonl").write_bytes(json_lines(texts(40, name)))
    return tmp_path / "text"


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The files of each piece that is tokenised, from then on."""
    found: list[set[str]] = []
    real = pieces.tokenise

    def noting(job: pieces.Job, piece: int, tokenizer: Any) -> Any:
        names = [job.reader.origins[span.origin].name for span in job.plan.pieces[piece]]
        found.append({os.path.basename(name)[0] for name in names})
        return real(job, piece, tokenizer)

    monkeypatch.setattr(pieces, "tokenise", noting)
    return found


def prepared(source: object, cache: object, piece_bytes: int = PIECE_BYTES, **more: Any) -> Corpus:
    cfg = DataConfig(f"{source}/*.jsonl", "bytes", cache_dir=str(cache), **more)
    asked = request(cfg, 300, lambda line: None)
    if not asked.done:
        make(asked, lambda line: None, Team(), piece_bytes)
    return open_prepared(asked)


def mend(folder: Path, name: str, count: int = 37) -> None:
    (folder / f"{name}.jsonl").write_bytes(json_lines(texts(count, f"{name} mended")))


def test_of_five_files_only_pieces_of_the_mended_one_are_tokenised_again(
    folder: Path, tmp_path: Path, tokenised: list[set[str]]
):
    before = prepared(folder, tmp_path / "c")
    whole = len(tokenised)
    assert whole >= 10
    tokenised.clear()
    mend(folder, "c")
    after = prepared(folder, tmp_path / "c")
    assert {"c"} in tokenised
    assert [names for names in tokenised if "c" not in names] in ([], [{"d"}])
    assert len(tokenised) <= whole / 5 + 2
    assert after.fingerprint != before.fingerprint
    assert contents(after) == contents(prepared(folder, tmp_path / "anew"))


@pytest.mark.parametrize("change", ["grown", "removed", "added", "first", "several"])
def test_small_files_that_share_pieces_are_as_well(
    folder: Path, tmp_path: Path, tokenised: list[set[str]], change: str
):
    for n in range(20):
        (folder / f"f{n:02}.jsonl").write_bytes(json_lines(texts(3, f"small {n}")))
    prepared(folder, tmp_path / "c")
    tokenised.clear()
    if change == "removed":
        (folder / "f07.jsonl").unlink()
    else:
        changed = {"added": "f07b", "first": "a", "grown": "f07", "several": "f03"}[change]
        mend(folder, changed, 9)
        if change == "several":
            mend(folder, "d")
    found = prepared(folder, tmp_path / "c")
    again = set().union(*tokenised)
    assert again <= {"first": {"a", "b"}, "several": {"c", "d", "e", "f"}}.get(change, {"f"})
    assert 0 < len(tokenised) <= 8
    assert contents(found) == contents(prepared(folder, tmp_path / "anew"))


def test_the_folder_before_can_be_deleted(folder: Path, tmp_path: Path):
    prepared(folder, tmp_path / "c")
    (before,) = (tmp_path / "c" / "tokens").glob("*/index.json")
    mend(folder, "c")
    after = prepared(folder, tmp_path / "c")
    tokens = after.train.tokens.tobytes()
    storage.remove_tree(before.parent)
    assert prepared(folder, tmp_path / "c").train.tokens.tobytes() == tokens


def test_a_piece_that_is_damaged_is_not_taken_over(
    folder: Path, tmp_path: Path, tokenised: list[set[str]]
):
    prepared(folder, tmp_path / "c")
    (index,) = (tmp_path / "c" / "tokens").glob("*/index.json")
    shard = index.parent / "train" / "000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\x07\x00")
    (index.parent / "train" / "000001.bin").unlink()
    tokenised.clear()
    mend(folder, "e")
    found = prepared(folder, tmp_path / "c")
    assert [names for names in tokenised if names == {"a"}] == [{"a"}, {"a"}]
    assert contents(found) == contents(prepared(folder, tmp_path / "anew"))


@pytest.mark.parametrize("change", [{"undecodable": "skip"}, {"text_field": "other"}])
def test_pieces_that_were_made_otherwise_are_not_taken_over(
    folder: Path, tmp_path: Path, tokenised: list[set[str]], change: dict[str, Any]
):
    for path in folder.iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        both = [{**line, "other": line["text"][::-1]} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in both))
    prepared(folder, tmp_path / "c")
    whole = len(tokenised)
    tokenised.clear()
    prepared(folder, tmp_path / "c", **change)
    assert len(tokenised) == whole


def test_pieces_of_a_text_so_small_that_it_holds_others_out_are_not_taken_over(
    tmp_path: Path, tokenised: list[set[str]]
):
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts(3, "few")))
    prepared(tmp_path, tmp_path / "c")
    tokenised.clear()
    (tmp_path / "b.jsonl").write_bytes(json_lines(texts(300, "many")))
    found = prepared(tmp_path, tmp_path / "c")
    assert {"a"} in tokenised or {"a", "b"} in tokenised
    assert contents(found) == contents(prepared(tmp_path, tmp_path / "anew"))


def test_pieces_in_a_bucket_are_taken_over_there(
    folder: Path, tmp_path: Path, bucket: str, tokenised: list[set[str]]
):
    prepared(folder, f"{bucket}/c")
    tokenised.clear()
    mend(folder, "b")
    found = prepared(folder, f"{bucket}/c")
    assert {"b"} in tokenised
    assert set().union(*tokenised) <= {"a", "b", "c"}
    assert contents(found) == contents(prepared(folder, tmp_path / "anew"))
