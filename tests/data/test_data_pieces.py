"""Data prepared in pieces are those prepared in one, whoever does which piece, and when."""

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corpora import contents, write_all

from polycom_jax import InputError, _files, storage
from polycom_jax.data import Corpus, DataConfig, pieces
from polycom_jax.data.corpus import open_prepared, prepare
from polycom_jax.data.preparing import Team, begin, finish, make
from polycom_jax.data.request import Request, request


def quietly(message: str) -> None:
    del message


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_all(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def whole(source: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    cache = tmp_path_factory.mktemp("whole")
    return prepare(usual(source, cache), vocab_size=300)


def usual(source: str, cache: Path | str, **changes: Any) -> DataConfig:
    cfg = DataConfig(source, "bytes", cache_dir=str(cache), document_bytes=200)
    return replace(cfg, **changes)


def asked(source: str, cache: Path, **changes: Any) -> Request:
    return request(usual(source, cache, **changes), 300, quietly)


@pytest.mark.parametrize(("piece_bytes", "least"), [(1, 100), (300, 30), (2_000, 8), (10_000, 2)])
def test_the_tokens_do_not_depend_on_how_the_source_is_cut(
    tmp_path: Path, source: str, whole: Corpus, piece_bytes: int, least: int
):
    found = asked(source, tmp_path)
    make(found, quietly, Team(), piece_bytes)
    assert contents(open_prepared(found)) == contents(whole)
    shards = len(list(Path(found.folder).glob("train/*.bin")))
    assert shards >= least


@pytest.mark.parametrize("piece_bytes", [500, 10**9])
def test_a_bpe_is_trained_on_the_same_text(tmp_path: Path, source: str, piece_bytes: int):
    found = asked(source, tmp_path, tokenizer="bpe", bpe_train_bytes=4_000)
    make(found, quietly, Team(), piece_bytes)
    expected = prepare(found.cfg, vocab_size=300)
    other = prepare(replace(found.cfg, cache_dir=str(tmp_path / "o")), vocab_size=300)
    assert contents(expected) == contents(other)


def test_what_is_done_is_not_done_again(tmp_path: Path, source: str, whole: Corpus):
    found = asked(source, tmp_path)
    job, tokenizer = begin(found, quietly, 1_000)
    assert job.missing() == list(range(len(job.plan.pieces)))
    for piece in (1, 4):
        pieces.write_piece(job, piece, tokenizer)
    done = [Path(found.folder, pieces.piece_name(piece)) for piece in (1, 4)]
    stamps = [path.stat().st_mtime_ns for path in done]
    # What a worker leaves that is ended amid a piece: a shard, and a file that is only begun.
    pieces.write_piece(job, 2, tokenizer)
    Path(found.folder, pieces.piece_name(2)).unlink()
    Path(found.folder, "pieces", ".000003.json.1f.tmp").write_text("{")
    again = asked(source, tmp_path)
    said: list[str] = []
    make(again, said.append, Team(), 10**9)  # the plan is there, and it is kept
    assert contents(open_prepared(again)) == contents(whole)
    assert [path.stat().st_mtime_ns for path in done] == stamps
    told = [line for line in said if "%" in line]
    assert len(told) == len(job.plan.pieces) - 2


def test_on_a_disk_without_links_a_plan_that_a_kill_left_empty_is_made(
    tmp_path: Path, source: str, whole: Corpus, monkeypatch: pytest.MonkeyPatch
):
    def refused(*names: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(_files, "FILLED_S", 0.2)
    found = asked(source, tmp_path)
    plan = Path(found.folder, pieces.PLAN)
    plan.parent.mkdir(parents=True)
    plan.touch()
    make(found, quietly, Team(), 1_000)
    assert contents(open_prepared(found)) == contents(whole)


def test_pieces_are_shared_by_the_processes_of_a_team(
    tmp_path: Path, source: str, whole: Corpus, monkeypatch: pytest.MonkeyPatch
):
    barrier, written = threading.Barrier(3), []
    real = pieces.write_piece

    def noting(job: Any, piece: int, tokenizer: Any) -> int:
        written.append((threading.current_thread().name, piece))
        return real(job, piece, tokenizer)

    monkeypatch.setattr(pieces, "write_piece", noting)
    found: dict[int, Corpus] = {}

    def meet(occasion: str) -> None:
        barrier.wait(60)

    def work(index: int) -> None:
        team = Team(index, 3, meet)
        one = asked(source, tmp_path)
        make(one, quietly, team, 1_000)
        found[index] = open_prepared(one)

    threads = [threading.Thread(target=work, args=(i,), name=str(i)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(contents(corpus) == contents(whole) for corpus in found.values())
    assert sorted(piece for _, piece in written) == list(range(len(written)))
    assert all(piece % 3 == int(name) for name, piece in written)


def test_two_workers_at_one_piece_write_the_same(tmp_path: Path, source: str, whole: Corpus):
    found = asked(source, tmp_path)
    job, tokenizer = begin(found, quietly, 1_000)
    for piece in [*job.missing(), *job.missing()]:
        before = _bytes(found.folder)
        pieces.write_piece(job, piece, job.tokenizer())
        after = _bytes(found.folder)
        assert {name: after[name] for name in before} == before
    finish(found, job, tokenizer)
    assert contents(open_prepared(found)) == contents(whole)


def _bytes(folder: Any) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in storage.entries(folder)}


def test_a_piece_that_is_damaged_is_named(tmp_path: Path, source: str):
    found = asked(source, tmp_path)
    job, tokenizer = begin(found, quietly, 10**9)
    pieces.write_piece(job, 0, tokenizer)
    Path(found.folder, pieces.piece_name(0)).write_bytes(b"{")
    with pytest.raises(InputError, match=r"000000\.json is damaged .*delete it"):
        finish(found, job, tokenizer)


def test_a_source_that_has_changed_by_the_end_is_refused(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i}\n" for i in range(500)))
    found = asked(str(path), tmp_path)
    job, tokenizer = begin(found, quietly, 10**9)
    pieces.write_piece(job, 0, tokenizer)
    path.write_text("".join(f"LINE {i}\n" for i in range(500)))
    with pytest.raises(InputError, match=r"a\.txt was changed while it was prepared"):
        finish(found, job, tokenizer)
    assert not Path(found.folder).exists()


def test_data_of_the_layout_before_are_told_of_and_a_run_on_them_goes_on(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in range(50)))
    found = asked(str(path), tmp_path / "c", document_bytes=65_536)
    (tmp_path / "c" / "tokens" / found.earlier_key() / "train").mkdir(parents=True)
    said: list[str] = []
    corpus = prepare(found.cfg, vocab_size=300, progress=said.append)
    assert f"{found.earlier_key()} are of an earlier layout" in said[0]
    assert corpus.earlier() == FINGERPRINT_BEFORE


FINGERPRINT_BEFORE = "b03f709359292c88afc2fe42fee2ce8b"
"""What data were known by that had one file of tokens a split."""
