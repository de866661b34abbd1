"""Several corpora: prepared one by one, with one tokenizer, and mixed by windows."""

import threading
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import json_lines, table, texts
from stores import in_memory

from polycom_jax import InputError
from polycom_jax._errors import InputWarning
from polycom_jax.data import (
    DataConfig,
    Mixture,
    Team,
    TokenStore,
    mixed_batches,
    prepare,
    prepare_mixture,
    train_batches,
)
from polycom_jax.data import mixture as mixture_module

EOT, T = 9_999, 4


def store(first: int, windows: int) -> TokenStore:
    """Tokens that count from `first` on, so that a window's first one names it."""
    tokens = np.arange(first, first + windows * T + 1, dtype=np.int64)
    return in_memory(tokens, EOT, num_documents=1, num_bytes=len(tokens))


STORES = [store(0, 13), store(1_000, 5), store(2_000, 40)]
WEIGHTS = (0.5, 0.2, 0.3)


def drawn(steps: int, start: int = 0, batch_size: int = 10, **more: Any) -> list[Any]:
    shape: dict[str, Any] = {"batch_size": batch_size, "seq_len": T, "seed": 7, **more}
    return list(islice(mixed_batches(STORES, WEIGHTS, start_step=start, **shape), steps))


def test_each_store_has_its_share_of_the_windows():
    firsts = np.concatenate([batch["tokens"][:, 0] for batch in drawn(100)])
    counts = Counter((firsts // 1_000).tolist())
    for index, weight in enumerate(WEIGHTS):
        assert abs(counts[index] - 1_000 * weight) <= 1


def test_a_store_is_read_by_epochs_each_in_another_order():
    firsts = np.concatenate([batch["tokens"][:, 0] for batch in drawn(30)])
    small = firsts[firsts // 1_000 == 1].reshape(-1, 5)  # five windows an epoch
    assert all(sorted(epoch) == sorted(small[0]) for epoch in small)
    assert len({tuple(epoch) for epoch in small}) > 1
    alone = train_batches(STORES[1], batch_size=small.size, seq_len=T, seed=7 + 1)
    np.testing.assert_array_equal(small.ravel(), next(alone)["tokens"][:, 0])


def test_the_seed_behind_the_last_one_is_the_first():
    firsts = np.concatenate([batch["tokens"][:, 0] for batch in drawn(5, seed=2**32 - 1)])
    small = firsts[firsts // 1_000 == 1]
    alone = train_batches(STORES[1], batch_size=small.size, seq_len=T, seed=0)
    np.testing.assert_array_equal(small, next(alone)["tokens"][:, 0])


def test_a_batch_is_a_function_of_seed_and_step_and_its_rows_of_the_batch():
    from_the_start, later = drawn(12), drawn(4, start=8)
    for one, other in zip(from_the_start[8:], later, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    parts = [drawn(3, rows=rows) for rows in (range(0, 5), range(5, 10))]
    for whole, first, second in zip(from_the_start, *parts, strict=False):
        for name in whole:
            both = np.concatenate([first[name], second[name]])
            np.testing.assert_array_equal(whole[name], both, err_msg=name)
    other = drawn(1, seed=8)[0]["tokens"]
    assert not np.array_equal(other, from_the_start[0]["tokens"])


def test_a_mixture_of_one_gives_the_batches_of_its_store():
    shape: dict[str, Any] = {"batch_size": 3, "seq_len": T, "seed": 3}
    pairs = zip(
        islice(mixed_batches(STORES[:1], (0.4,), **shape), 5),
        islice(train_batches(STORES[0], **shape), 5),
        strict=True,
    )
    for one, other in pairs:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0), (1.0, -1.0, 1.0)])
def test_weights_that_are_none_are_refused(weights: tuple[float, ...]):
    with pytest.raises(InputError, match="weights"):
        mixed_batches(STORES, weights, batch_size=1, seq_len=T, seed=0)


@pytest.mark.parametrize("change", [{"eot": 5}, {"begin": (5,)}])
def test_stores_of_different_tokenizers_are_refused(change: dict[str, Any]):
    other = replace(STORES[1], **change)
    with pytest.raises(InputError, match="different tokenizers"):
        mixed_batches([STORES[0], other], (1, 1), batch_size=1, seq_len=T, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("a", 300), ("b", 200)):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(texts(count, f"{name} of many")))
    return tmp_path


def mixture(folder: Path, a: object, b: object, **changes: Any) -> Mixture:
    source = (f"{folder}/a.jsonl={a}", f"{folder}/b.jsonl={b}")
    cfg = DataConfig(source, **{"tokenizer": "bytes", "cache_dir": str(folder / "c"), **changes})
    return prepare_mixture(cfg, vocab_size=300)


def alone(folder: Path, name: str, **changes: Any) -> Any:
    cfg = DataConfig(f"{folder}/{name}.jsonl", "bytes", cache_dir=str(folder / "c"), **changes)
    return prepare(cfg, vocab_size=300)


def test_each_corpus_is_what_it_is_alone_and_prepared_once(folder: Path):
    found = mixture(folder, 0.7, 0.3)
    before = sorted((folder / "c" / "tokens").glob("*/index.json"))
    for name, corpus in zip("ab", found.corpora, strict=True):
        assert corpus.fingerprint == alone(folder, name).fingerprint
    assert mixture(folder, 1, 9).corpora[0].fingerprint == found.corpora[0].fingerprint
    assert sorted((folder / "c" / "tokens").glob("*/index.json")) == before
    assert found.names == ("a", "b")
    assert found.summary["corpora"]["a"]["weight"] == 0.7


def test_a_mixture_is_known_by_its_corpora_and_weights(folder: Path):
    found = mixture(folder, 0.7, 0.3).fingerprint
    assert mixture(folder, 7, 3).fingerprint == found
    assert mixture(folder, 0.6, 0.4).fingerprint != found
    (folder / "b.jsonl").write_bytes(json_lines(texts(201, "b of many")))
    assert mixture(folder, 0.7, 0.3).fingerprint != found


def test_of_one_text_all_is_as_prepare_gives_it(folder: Path):
    cfg = DataConfig(f"{folder}/a.jsonl", "bytes", cache_dir=str(folder / "c"))
    found, expected = prepare_mixture(cfg, vocab_size=300), alone(folder, "a")
    assert found.fingerprint == expected.fingerprint
    assert found.summary == expected.summary
    with pytest.raises(InputError, match=r"several texts are for data\.prepare_mixture"):
        prepare(replace(cfg, source=("a=1", "b=1")), vocab_size=300)


def test_a_bpe_is_trained_on_all_texts_by_their_weights(folder: Path):
    (folder / "a.jsonl").write_bytes(json_lines(["xyzzy xyzzy xyzzy"] * 4 + texts(300, "a")))
    (folder / "b.jsonl").write_bytes(json_lines([f"plugh {i} plugh plugh" for i in range(300)]))
    bpe: dict[str, Any] = {"tokenizer": "bpe", "bpe_train_bytes": 4_000}
    found = mixture(folder, 0.5, 0.5, **bpe)
    again = mixture(folder, 0.5, 0.5, **bpe)
    assert again.fingerprint == found.fingerprint
    assert {corpus.tokenizer.fingerprint for corpus in found.corpora} == {
        found.tokenizer.fingerprint
    }
    assert len(list((folder / "c" / "bpe").glob("*/tokenizer.json"))) == 1
    assert len(found.tokenizer.encode(" plugh")) < len(" plugh") / 2  # a word of b alone
    other = mixture(folder, 0.99, 0.01, **bpe)
    assert other.tokenizer.fingerprint != found.tokenizer.fingerprint
    assert len(found.corpora[1].train.tokens) < len(alone(folder, "b").train.tokens)


def test_a_team_trains_one_bpe_and_shares_the_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch):
    barrier, trained, found = threading.Barrier(2), list[str](), dict[int, Mixture]()
    real = mixture_module.trained_bpe

    def noting(*given: Any) -> bytes:
        trained.append(threading.current_thread().name)
        return real(*given)

    monkeypatch.setattr(mixture_module, "trained_bpe", noting)
    source = (f"{folder}/a.jsonl=2", f"{folder}/b.jsonl=1")
    cfg = DataConfig(source, cache_dir=str(folder / "c"))

    def meet(occasion: str) -> None:
        barrier.wait(60)

    def work(index: int) -> None:
        team = Team(index, 2, meet)
        found[index] = prepare_mixture(cfg, vocab_size=300, team=team)

    threads = [threading.Thread(target=work, args=(i,), name=str(i)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trained == ["0"]
    assert found[0].fingerprint == found[1].fingerprint
    alone = replace(cfg, cache_dir=str(folder / "d"))
    assert prepare_mixture(alone, vocab_size=300).fingerprint == found[0].fingerprint


def lines(count: int) -> str:
    return "".join(f"The {n}th fox jumps over {n % 7} lazy dogs.\n" for n in range(count))


def test_a_file_that_two_texts_cut_otherwise_is_refused_and_cut_alike_it_may_be_in_both(tmp_path):
    (tmp_path / "a.txt").write_text(lines(2_000))
    (tmp_path / "b.txt").write_text(lines(8_000)[90_000:])
    source = (f"{tmp_path}/a.txt=1", f"{tmp_path}/*.txt=1")
    cfg = DataConfig(source, "bytes", cache_dir=str(tmp_path / "c"))
    message = (
        r"a\.txt is in .*a\.txt \(documents of 1024 bytes held out by hash\) and in .*\*\.txt"
        r" \(documents of \d{4,} bytes .*one would train on what the other holds out; cut both"
        r" alike with data\.document_bytes=1024, or take it out of one"
    )
    with pytest.raises(InputError, match=message):
        prepare_mixture(cfg, vocab_size=257)
    told: list[str] = []
    assert len(prepare_mixture(cfg, vocab_size=257, warn=told.append).corpora) == 2
    (line,) = told
    assert "what the other holds out. The run began so and goes on" in line
    alike = prepare_mixture(replace(cfg, document_bytes=1024), vocab_size=257)
    assert alike.corpora[0].heldout.num_documents > 0


def test_a_file_of_one_document_may_be_in_texts_that_are_cut_otherwise(tmp_path: Path):
    for name, text in (("a", lines(2_000)), ("b", lines(8_000)[90_000:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text)
        (tmp_path / name / "LICENSE.txt").write_text(lines(20))
    source = (f"{tmp_path}/a/*.txt=1", f"{tmp_path}/b/*.txt=1")
    cfg = DataConfig(source, "bytes", cache_dir=str(tmp_path / "c"))
    one, other = prepare_mixture(cfg, vocab_size=257).corpora
    assert one.summary["document_bytes"] < other.summary["document_bytes"]


def test_a_file_that_one_text_holds_out_is_not_what_another_trains_on(tmp_path: Path):
    for name in ("train", "validation"):
        rows: Any = texts(200, name)
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table(rows), tmp_path / "set" / f"{name}.parquet")
    source = (f"{tmp_path}/set=1", f"{tmp_path}/set/validation.parquet=1")
    cfg = DataConfig(source, "bytes", cache_dir=str(tmp_path / "c"))
    with pytest.raises(
        InputError, match=r"validation\.parquet is in .*\(all of it held out\) and in"
    ):
        prepare_mixture(cfg, vocab_size=257)


def test_a_file_that_a_small_text_holds_other_documents_out_of_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts(3, "few")))
    (tmp_path / "b.jsonl").write_bytes(json_lines(texts(300, "many")))
    source = (f"{tmp_path}/a.jsonl=1", f"{tmp_path}/*.jsonl=1")
    cfg = DataConfig(source, "bytes", cache_dir=str(tmp_path / "c"))
    with pytest.raises(InputError, match=r"so few documents that it holds out others"):
        prepare_mixture(cfg, vocab_size=257)
    told: list[str] = []
    with pytest.warns(InputWarning, match="other documents are held out than of the others"):
        assert len(prepare_mixture(cfg, vocab_size=257, warn=told.append).corpora) == 2
    assert [line for line in told if "so few documents" in line] == told != []


def test_a_file_may_be_in_two_texts_that_hold_the_same_of_it_out(folder: Path):
    source = (f"{folder}/a.jsonl=1", f"{folder}/*.jsonl=1")
    cfg = DataConfig(source, "bytes", cache_dir=str(folder / "c"))
    one, both = prepare_mixture(cfg, vocab_size=257).corpora
    assert one.heldout.num_documents < both.heldout.num_documents


def test_a_plan_is_read_once_however_many_files_two_texts_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "other.jsonl").write_bytes(json_lines(texts(100, "other")))
    source = (f"{folder}/?.jsonl=1", f"{folder}/*.jsonl=1")
    read: list[Any] = []
    monkeypatch.setattr(mixture_module, "_bound", lambda asked: read.append(asked.source.name))
    cfg = DataConfig(source, "bytes", cache_dir=str(folder / "c"))
    prepare_mixture(cfg, vocab_size=257)
    assert read == [f"{folder}/?.jsonl", f"{folder}/*.jsonl"]


def test_the_same_text_under_two_names_is_refused(folder: Path):
    (folder / "b.jsonl").write_bytes((folder / "a.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"a\.jsonl and .*b\.jsonl hold the same text"):
        mixture(folder, 0.7, 0.3)
