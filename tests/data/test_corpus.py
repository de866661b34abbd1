"""`prepare`, from files to stores: what is in them, that it is made once, and by one process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import documents

from polycom_jax import InputError
from polycom_jax.data import DataConfig, prepare, tokenizers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts() -> list[str]:
    return [f"Document {i}\r\n\tnaïve 🙂 {'word ' * (i % 7)}\n" for i in range(200)]


@pytest.fixture
def source(tmp_path: Path, texts: list[str]) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_both_splits_together_are_the_corpus_in_its_order(
    tmp_path: Path, source: str, texts: list[str], tokenizer: str
):
    cfg = DataConfig(source=source, tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"))
    corpus = prepare(cfg, vocab_size=300)
    train = documents(corpus.train, corpus.tokenizer)
    heldout = documents(corpus.heldout, corpus.tokenizer)
    assert set(train) | set(heldout) == set(texts)
    assert len(train) + len(heldout) == len(texts)
    assert 1 <= len(heldout) <= 20
    assert train == [text for text in texts if text in set(train)]
    assert corpus.train.num_bytes == sum(len(text.encode()) for text in train)
    assert corpus.summary["train"]["documents"] == len(train)
    assert corpus.summary["vocab_size"] == corpus.tokenizer.vocab_size
    assert "tensorflow" not in sys.modules


def test_the_second_time_nothing_is_prepared(tmp_path: Path, source: str):
    cfg = DataConfig(source=source, cache_dir=str(tmp_path / "cache"))
    said: list[str] = []
    first = prepare(cfg, vocab_size=300, progress=said.append)
    assert any("BPE" in line for line in said)
    assert said[-1].startswith(f"Tokenising {source}: 100 %, ")
    assert said[-1].endswith(" tokens/s, 0:00:00 left")
    assert all("\n" not in line for line in said)
    said.clear()
    second = prepare(cfg, vocab_size=300, progress=said.append)
    assert said == []
    assert second.fingerprint == first.fingerprint
    assert second.summary == first.summary


def test_preparing_in_another_place_gives_the_same_bytes(tmp_path: Path, source: str):
    stores = []
    for name in ("a", "b"):
        corpus = prepare(DataConfig(source=source, cache_dir=str(tmp_path / name)), vocab_size=300)
        stores.append((corpus.fingerprint, corpus.train.tokens.tobytes()))
    assert stores[0] == stores[1]


def test_the_fingerprint_follows_the_text_the_tokenizer_and_the_treatment(
    tmp_path: Path, source: str
):
    usual = DataConfig(source=source, cache_dir=str(tmp_path / "cache"))

    def fingerprint(vocab_size: int = 300, **changes: Any) -> str:
        return prepare(replace(usual, **changes), vocab_size=vocab_size).fingerprint

    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(source).read_bytes())
    changed = tmp_path / "changed.jsonl"
    changed.write_text(Path(source).read_text() + '{"text": "one more"}\n')
    assert fingerprint() == fingerprint(source=str(moved))
    others = [
        fingerprint(),
        fingerprint(source=str(changed)),
        fingerprint(tokenizer="bytes"),
        fingerprint(vocab_size=301),
        fingerprint(undecodable="skip"),
        fingerprint(document_bytes=500),
        fingerprint(bpe_train_bytes=500),
    ]
    assert len(set(others)) == len(others)


def test_a_given_tokenizer_states_its_own_size(tmp_path: Path, source: str):
    cache = tmp_path / "cache"
    prepare(DataConfig(source=source, cache_dir=str(cache)), vocab_size=300)
    (path,) = cache.glob("tokens/*/tokenizer.json")
    cfg = DataConfig(source=source, cache_dir=str(cache), tokenizer=str(path))
    assert prepare(cfg, vocab_size=7).tokenizer.vocab_size == 300


def test_a_single_plain_file_has_something_to_hold_out(tmp_path: Path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book.\n" for i in range(20_000)))
    cfg = DataConfig(source=str(path), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    corpus = prepare(cfg, vocab_size=300)
    assert corpus.train.num_bytes + corpus.heldout.num_bytes == path.stat().st_size
    assert 0 < corpus.heldout.num_bytes < corpus.train.num_bytes


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_undecodable_documents_can_be_an_error(tmp_path: Path, source: str, tokenizer: str):
    with open(source, "ab") as file:
        file.write(b'{"text": "bad \xff"}\n')
    cfg = DataConfig(source=source, tokenizer=tokenizer, undecodable="error")
    with pytest.raises(InputError, match=r"^texts\.jsonl, line 201 is not UTF-8 .*at byte 4"):
        prepare(replace(cfg, cache_dir=str(tmp_path / "cache")), vocab_size=300)


def test_undecodable_and_empty_documents_are_counted_in_the_summary(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    good = b"".join(b'{"text": "document %d"}\n' % i for i in range(100))
    path.write_bytes(good + b'{"text": "bad \xff"}\n{"text": ""}\n')
    cfg = DataConfig(source=str(path), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    splits = [prepare(cfg, vocab_size=300).summary[name] for name in ("train", "heldout")]
    for name, count in (("undecodable", 1), ("empty", 1), ("documents", 101)):
        assert sum(split[name] for split in splits) == count, name


@pytest.mark.parametrize(
    ("bad", "undecodable", "said"),
    [
        (b"", "replace", ""),
        (b'{"text": ""}\n' * 2, "replace", "2 empty documents left out"),
        (b'{"text": "\xff"}\n', "replace", "1 document with undecodable bytes replaced"),
        (b'{"text": "\xff"}\n', "error", None),
        (
            b'{"text": ""}\n{"text": "\xff"}\n{"text": "b\xff"}\n',
            "skip",
            "1 empty document left out, 2 documents not in UTF-8 left out",
        ),
    ],
)
def test_what_was_not_taken_as_it_came_is_said_in_a_line(
    tmp_path: Path, source: str, bad: bytes, undecodable: Any, said: str | None
):
    with open(source, "ab") as file:
        file.write(bad)
    cfg = DataConfig(source, "bytes", cache_dir=str(tmp_path / "c"), undecodable=undecodable)
    if said is None:
        with pytest.raises(InputError, match="not UTF-8"):
            prepare(cfg, vocab_size=300)
    else:
        assert prepare(cfg, vocab_size=300).treated == said


def test_other_files_can_be_held_out(tmp_path: Path, source: str, texts: list[str]):
    paths = [tmp_path / "v1.jsonl", tmp_path / "v2.jsonl"]
    for path in paths:
        path.write_text(json.dumps({"text": f"held out in {path.name}"}) + "\n")
    usual = DataConfig(source, "bytes", cache_dir=str(tmp_path / "cache"))
    corpora = [
        prepare(replace(usual, heldout=heldout), vocab_size=300)
        for heldout in (str(tmp_path / "v?.jsonl"), str(paths[0]), None)
    ]
    assert documents(corpora[0].train, corpora[0].tokenizer) == texts
    assert documents(corpora[0].heldout, corpora[0].tokenizer) == [
        "held out in v1.jsonl",
        "held out in v2.jsonl",
    ]
    assert corpora[1].heldout.num_documents == 1
    assert corpora[2].train.num_documents < len(texts)
    assert len({corpus.fingerprint for corpus in corpora}) == 3


@pytest.mark.parametrize(
    ("heldout", "match"),
    [
        ("absent.jsonl", r"data\.heldout='.*absent\.jsonl': no such file"),
        ("empty.jsonl", r"empty\.jsonl: no text in it"),
    ],
)
def test_a_held_out_file_of_no_use_is_named(tmp_path: Path, source: str, heldout: str, match: str):
    (tmp_path / "empty.jsonl").write_text("")
    cfg = DataConfig(source, heldout=str(tmp_path / heldout), cache_dir=str(tmp_path / "c"))
    with pytest.raises(InputError, match=match):
        prepare(cfg, vocab_size=300)


def test_the_standard_library_has_no_other_text_to_hold_out():
    with pytest.raises(InputError, match=r"data\.heldout='test' does not go with .*stdlib"):
        DataConfig(heldout="test")


def test_a_plain_file_without_line_ends_has_something_to_hold_out(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(f"naïve {i}" for i in range(30_000)))
    cfg = DataConfig(str(path), "bytes", cache_dir=str(tmp_path / "cache"))
    corpus = prepare(cfg, vocab_size=300)
    assert corpus.train.num_bytes + corpus.heldout.num_bytes == path.stat().st_size
    assert corpus.treated == ""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a BPE is trained on from then on."""
    found: list[str] = []
    train = tokenizers.train_bpe

    def noting(texts, vocab_size: int, path: Path) -> None:
        found.extend(texts)
        train(iter(found), vocab_size, path)

    monkeypatch.setattr("polycom_jax.data.bpe.train_bpe", noting)
    return found


@pytest.mark.parametrize(("wanted", "every"), [(1_000_000, 1), (2_000, 4)])
def test_a_bpe_is_trained_on_evenly_spread_documents_none_of_which_is_held_out(
    tmp_path: Path, given: list[str], wanted: int, every: int
):
    path = tmp_path / "a.jsonl"
    texts = [f"{i:04}".ljust(20, "x") for i in range(412)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = DataConfig(str(path), bpe_train_bytes=wanted, cache_dir=str(tmp_path / "cache"))
    corpus = prepare(cfg, vocab_size=300)
    train = documents(corpus.train, corpus.tokenizer)
    assert 0 < corpus.heldout.num_documents < 20
    assert given == train[::every]


def test_a_bpe_is_trained_on_no_more_of_a_long_document_than_its_share(
    tmp_path: Path, given: list[str]
):
    path = tmp_path / "a.jsonl"
    contents = ["é" * 50_000, *(f"short {i}" for i in range(100))]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in contents))
    (tmp_path / "v.jsonl").write_text('{"text": "held out"}\n')
    cfg = DataConfig(
        str(path),
        heldout=str(tmp_path / "v.jsonl"),
        bpe_train_bytes=8_008,
        cache_dir=str(tmp_path / "cache"),
    )
    prepare(cfg, vocab_size=300)
    assert given[0] == "é" * 500  # 1,001 bytes, but for half a character
    assert given[1:] == contents[1:]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", r"a\.jsonl: no text in it; the corpus is empty"),
        ('{"text": ""}\n', r"a\.jsonl: no text in it; the corpus is empty"),
        ('{"text": "x"}\n', "single document"),
        ('{"text": "x"}\n{"other": "y"}\n', "line 2: field 'text' is missing"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused_and_leaves_no_trace(
    tmp_path: Path, content: str, match: str
):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    cfg = DataConfig(source=str(path), cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        with pytest.raises(InputError, match=match):
            prepare(cfg, vocab_size=300)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_vocabulary_too_small_is_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(InputError, match="vocab_size=100 is too small"):
        prepare(DataConfig(source="no/such/file.txt"), vocab_size=100)


def test_the_standard_library_is_prepared_silently(capfd: pytest.CaptureFixture[str]):
    corpus = prepare(DataConfig(tokenizer="bytes"), vocab_size=300)
    assert corpus.train.num_bytes > 5_000_000
    share = corpus.heldout.num_bytes / (corpus.train.num_bytes + corpus.heldout.num_bytes)
    assert 0.005 < share < 0.1
    assert "def " in corpus.tokenizer.decode(corpus.heldout.read(0, 4000))
    assert capfd.readouterr() == ("", "")


def test_of_two_processes_that_start_at_once_one_prepares(tmp_path: Path, source: str):
    import filelock

    prepare(DataConfig(source=source, cache_dir=str(tmp_path / "a")), vocab_size=300)
    (folder,) = [p for p in (tmp_path / "a" / "tokens").iterdir() if p.is_dir()]
    cache = tmp_path / "b"
    program = (
        "from polycom_jax.data import DataConfig, prepare\n"
        f"cfg = DataConfig(source={source!r}, cache_dir={str(cache)!r})\n"
        "corpus = prepare(cfg, vocab_size=300, progress=lambda line: print(line, flush=True))\n"
        "print(corpus.fingerprint)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (cache / "tokens").mkdir(parents=True)
    with filelock.FileLock(cache / "tokens" / f"{folder.name}.lock"):
        children = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", program],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(2)
        ]
        for child in children:  # Both are at the lock now: neither could have come through it.
            assert child.stdout is not None
            assert child.stdout.readline().startswith("Waiting for another process")
    results = [child.communicate(timeout=120) for child in children]
    assert [errors for _, errors in results] == ["", ""]
    assert [child.returncode for child in children] == [0, 0]
    outputs = [result[0].splitlines() for result in results]
    assert outputs[0][-1] == outputs[1][-1]
    assert sum("Training a BPE" in line for output in outputs for line in output) == 1
    assert not list(cache.rglob("*.tmp-*"))


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'tensorflow_datasets', 'grain', 'tokenizers', 'tensorflow', 'platformdirs'}"
    program = f"import sys, polycom_jax.data; assert not {heavy} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""),
        ("batch_size", 0),
        ("document_bytes", 0),
        ("undecodable", "ignore"),
        ("lock_timeout_s", 0.0),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, value: object):
    with pytest.raises(InputError, match=f"data.{field}"):
        DataConfig(**{field: value})  # type: ignore[arg-type]
