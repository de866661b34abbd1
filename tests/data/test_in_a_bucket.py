"""Text and prepared data in a bucket: the same tokens, the same batches, and only ranges read."""

import glob
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import contents, json_lines, table, texts, write_all, zstd

from polycom_jax import InputError, storage
from polycom_jax.data import (
    Corpus,
    DataConfig,
    eval_batches,
    files,
    pieces,
    prepare,
    train_batches,
)


def copied(folder: Path, bucket: str) -> None:
    for path in folder.iterdir():
        storage.write(storage.place(f"{bucket}/text/{path.name}"), path.read_bytes())


def made(source: str, cache: str, **changes: Any) -> Corpus:
    cfg = DataConfig(source, "bytes", cache_dir=cache, document_bytes=200, **changes)
    return prepare(cfg, vocab_size=300)


def assert_equal(one: Any, other: Any) -> None:
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_tokens_in_a_bucket_give_the_batches_of_those_on_a_disk(tmp_path: Path, bucket: str):
    (tmp_path / "text").mkdir()
    source = write_all(tmp_path / "text")
    here, there = made(source, str(tmp_path / "c")), made(source, f"{bucket}/cache")
    assert contents(there) == contents(here)
    shape: dict[str, Any] = {"batch_size": 4, "seq_len": 64}
    for step in (0, 1_000):
        drawn = [
            islice(train_batches(corpus.train, **shape, seed=3, start_step=step), 3)
            for corpus in (here, there)
        ]
        for one, other in zip(*drawn, strict=True):
            assert_equal(one, other)
    pairs = zip(
        eval_batches(here.heldout, **shape), eval_batches(there.heldout, **shape), strict=True
    )
    for one, other in pairs:
        assert_equal(one, other)
    assert not list((tmp_path / "c").rglob(".*.tmp"))


@pytest.mark.parametrize(
    "pattern", ["*.txt", "**/*.txt", "**", "x/*", "x/**", "*/*.txt", "**/y/*", ".*/*.txt", "**/.*"]
)
def test_a_glob_means_in_a_bucket_what_it_means_on_a_disk(tmp_path: Path, pattern: str):
    names = ["a.txt", "._a.txt", ".y/d.txt", "x/.c.txt", "x/.z/f.txt", "x/b.txt", "x/y/e.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = glob.glob(pattern, root_dir=tmp_path, recursive=True)
    rule = files._glob_rule(pattern)
    assert {name for name in names if rule(name)} == {name for name in found if name in names}


def test_text_in_a_bucket_gives_the_tokens_of_that_on_a_disk(tmp_path: Path, bucket: str):
    (tmp_path / "text").mkdir()
    here = made(write_all(tmp_path / "text"), str(tmp_path / "c"))
    copied(tmp_path / "text", bucket)
    there = made(f"{bucket}/text/*.*", str(tmp_path / "d"))
    assert contents(there) == contents(here)
    sums = [list(corpus.summary["files"].values()) for corpus in (here, there)]
    assert sums[0] == sums[1]
    assert made(f"{bucket}/text/*.*", str(tmp_path / "d")).fingerprint == there.fingerprint
    storage.write(storage.place(f"{bucket}/text/b.txt"), b"another text\n" * 30)
    assert made(f"{bucket}/text/*.*", str(tmp_path / "d")).fingerprint != there.fingerprint


def test_text_that_moves_to_a_bucket_is_not_tokenised_again(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "text").mkdir()
    here = made(write_all(tmp_path / "text"), f"{bucket}/cache")
    copied(tmp_path / "text", bucket)
    monkeypatch.setattr(pieces, "tokenise", None)
    assert contents(made(f"{bucket}/text/*.*", f"{bucket}/cache")) == contents(here)


def test_of_a_shard_in_a_bucket_only_windows_are_fetched(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(json_lines(texts(400))))
    corpus = made(str(path), f"{bucket}/cache")
    read: list[int] = []
    real = storage.read

    def noting(place: Any, start: int = 0, size: int | None = None) -> bytes:
        read.append(size or 0)
        return real(place, start, size)

    monkeypatch.setattr(storage, "read", noting)
    corpus.train.read(100, 133)
    assert read == [66]


def test_globs_in_a_bucket_match_as_on_a_disk(tmp_path: Path, bucket: str):
    names = ["a.txt", "b.jsonl", "s/c.txt", "s/t/d.txt", "s/t/e.gone"]
    for name in names:
        storage.write(storage.place(f"{bucket}/r/{name}"), b"x")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for pattern in ("*.txt", "**/*.txt", "s/**/*.txt", "s/*/?.txt", "[ab].*", "s/c.txt"):
        found = [
            [
                str(path).removeprefix(f"{root}/")
                for path in files.matched_files(f"{root}/{pattern}")
            ]
            for root in (tmp_path, f"{bucket}/r")
        ]
        assert found[0] == found[1] != [], pattern


@pytest.mark.parametrize("name", ["absent.txt", "*.txt", "absent/*.txt"])
def test_text_that_is_not_in_the_bucket_is_told_in_a_line(tmp_path: Path, bucket: str, name: str):
    with pytest.raises(InputError, match="no such file, and no file matches"):
        made(f"{bucket}/{name}", str(tmp_path))


def test_a_dataset_in_a_bucket_has_its_splits(tmp_path: Path, bucket: str):
    import pyarrow.parquet as pq

    for split, count in (("train", 30), ("validation", 4)):
        pq.write_table(table([*texts(count, split)]), tmp_path / "t.parquet")
        data = (tmp_path / "t.parquet").read_bytes()
        storage.write(storage.place(f"{bucket}/set/data/{split}-0.parquet"), data)
    corpus = made(f"{bucket}/set", str(tmp_path / "c"))
    assert (corpus.train.num_documents, corpus.heldout.num_documents) == (30, 4)


def test_a_shard_that_is_gone_from_the_bucket_is_told(tmp_path: Path, bucket: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(texts(90)))
    made(str(path), f"{bucket}/cache")
    folder = storage.place(f"{bucket}/cache")
    (name,) = (name for name in storage.entries(folder) if name.endswith("train/000000.bin"))
    storage.write(folder / name, b"12")
    with pytest.raises(InputError, match=r"train/000000\.bin has 2 bytes of"):
        made(str(path), f"{bucket}/cache")
    storage.remove(folder / name)
    with pytest.raises(InputError, match=r"train/000000\.bin is missing.*delete that folder"):
        made(str(path), f"{bucket}/cache")
