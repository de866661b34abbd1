"""Data that have gone bad, for real: an error that names the place, or a counted skip."""

import gzip
import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polycom_jax import InputError
from polycom_jax.data import Corpus, DataConfig, index, prepare, request
from polycom_jax.data.pieces import INDEX

GOOD = [f"Document {i} of a little text, {'word ' * (i % 7)}" for i in range(120)]


def lines(texts: list[str] = GOOD) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(lines())
    return path


@pytest.fixture
def config(tmp_path: Path, source: Path) -> DataConfig:
    return DataConfig(str(source), "bytes", cache_dir=str(tmp_path / "cache"))


def made(config: DataConfig, **changes: Any) -> Corpus:
    return prepare(replace(config, **changes), vocab_size=300)


def count(found: Corpus, what: str) -> int:
    return sum(found.summary[split][what] for split in ("train", "heldout"))


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "cut sh',
        b"\x00\x01\x02",
        b"[1]",
        b'{"other": "x"}',
        b'{"text": 3}',
        b"[" * 100_000,
    ],
    ids=["cut", "binary", "list", "no text", "number", "deep"],
)
def test_a_json_line_that_is_none_is_an_error_or_counted(
    config: DataConfig, source: Path, line: bytes
):
    half = lines(GOOD[:60])
    source.write_bytes(half + line + b"\n" + lines(GOOD[60:]))
    with pytest.raises(InputError, match=r"texts\.jsonl, line 61") as caught:
        made(config)
    assert "\n" not in str(caught.value)
    found = made(config, damaged="skip")
    assert count(found, "damaged") == 1
    assert count(found, "documents") == len(GOOD)
    assert found.treated == "1 damaged document left out"
    again = made(config, damaged="skip")  # what was counted is known without reading it again
    assert again.summary == found.summary
    other = made(config, damaged="skip", tokenizer="bpe")
    assert count(other, "damaged") == 1


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_a_packed_file_cut_short_is_an_error_or_its_rest_is_counted(
    tmp_path: Path, config: DataConfig, source: Path, suffix: str, pack: Any, kind: str
):
    text = lines() if kind == "jsonl" else b"".join(b"%d, and so on\n" % i for i in range(20_000))
    packed = pack(text)
    path = tmp_path / f"cut.{kind}{suffix}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    (tmp_path / "whole.jsonl").write_bytes(lines(["A whole file."]))
    pattern = str(tmp_path / f"[cw]*.{kind}*") if kind == "jsonl" else str(path)
    options = {"source": pattern, "document_bytes": 2_000}
    with pytest.raises(InputError, match=rf"cut\.{kind}{suffix} is damaged or cut short"):
        made(config, **options)
    found = made(config, **options, damaged="skip")
    assert count(found, "damaged") == 1
    assert count(found, "documents") >= 2
    assert "1 damaged document left out" in found.treated


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damage_to_any_prepared_file_is_named_with_what_to_do(config: DataConfig, damage: Any):
    config = replace(config, tokenizer="bpe")
    first = made(config)
    (folder,) = (path for path in Path(str(config.cache_dir), "tokens").iterdir() if path.is_dir())
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    once = {"plan.json", "pieces/000000.json"}  # with the index, nobody needs them any more
    needed = {"train/000000.bin", "heldout/000000.bin", "tokenizer.json", INDEX}
    assert set(names) == once | needed
    for name in needed:
        kept = (folder / name).read_bytes()
        damage(folder / name)
        if name == INDEX and damage is Path.unlink:  # then it is made again of the pieces
            assert made(config).fingerprint == first.fingerprint
            continue
        with pytest.raises(InputError) as caught:
            made(config)
        message = str(caught.value)
        assert name in message
        assert f"{folder} are damaged" in message
        assert "delete that folder" in message
        (folder / name).write_bytes(kept)
    assert made(config).fingerprint == first.fingerprint
    shutil.rmtree(folder)
    assert made(config).fingerprint == first.fingerprint


def test_of_large_prepared_data_the_sizes_are_checked(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
):
    made(config)
    monkeypatch.setattr(index, "READ_BYTES", 10)
    (tokens,) = Path(str(config.cache_dir)).glob("tokens/*/train/*.bin")
    flip(tokens)
    made(config)
    cut(tokens)
    with pytest.raises(InputError, match=r"train/000000\.bin has \d+ bytes of \d+"):
        made(config)


def test_data_prepared_by_another_version_are_left_alone_and_not_used(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
):
    old = made(config)
    folders = set(Path(str(config.cache_dir), "tokens").iterdir())
    monkeypatch.setattr(request, "FORMAT", request.FORMAT + 1)
    new = made(config)
    assert new.fingerprint != old.fingerprint  # so a run of the old version is not gone on with
    added = {p for p in Path(str(config.cache_dir), "tokens").iterdir() if p.is_dir()} - folders
    assert len(added) == 1


def test_a_file_that_changes_between_runs_gives_another_corpus(config: DataConfig, source: Path):
    before = made(config)
    source.write_bytes(source.read_bytes().replace(b"little", b"small "))
    after = made(config)
    assert after.fingerprint != before.fingerprint
    assert before.summary["files"].keys() == after.summary["files"].keys() == {str(source)}
    assert before.summary["files"] != after.summary["files"]


def test_a_file_that_changes_while_it_is_prepared_is_an_error_and_nothing_of_it_is_kept(
    config: DataConfig, source: Path
):
    original = source.read_bytes()

    def change(message: str) -> None:
        if message.startswith("Tokenising"):
            source.write_bytes(original + lines(["one more"]))

    with pytest.raises(InputError, match=r"texts\.jsonl was changed while it was prepared"):
        prepare(config, vocab_size=300, progress=change)
    assert not list(Path(str(config.cache_dir)).rglob("*.bin"))
    assert count(made(config), "documents") == len(GOOD) + 1
    source.write_bytes(original)
    assert count(made(config), "documents") == len(GOOD)


def test_many_files_are_not_listed(tmp_path: Path, config: DataConfig):
    for i in range(101):
        (tmp_path / f"many-{i}.txt").write_text(f"Text number {i}.\n")
    assert made(config, source=str(tmp_path / "many-*.txt")).summary["files"] == {}


def test_only_known_treatments_are_taken():
    with pytest.raises(InputError, match=r"Unknown data\.damaged 'ignore'\. Known: error, skip"):
        DataConfig(damaged="ignore")  # pyright: ignore[reportArgumentType]
