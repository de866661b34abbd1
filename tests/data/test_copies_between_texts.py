"""Of a mixture, held-out documents of one text that another one trains on are counted and told."""

import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from corpora import json_lines, table, texts

from polycom_jax._errors import InputWarning
from polycom_jax.data import DataConfig, Mixture, prepare, prepare_mixture
from polycom_jax.data import mixture as mixture_module
from polycom_jax.data.heldout import BOUND, content_hash

EN, DE = texts(60, "hens"), texts(60, "Hennen")
HELD = texts(12, "held out")


def write(folder: Path, train: list[str], heldout: list[str]) -> None:
    folder.mkdir()
    for name, documents in (("train", train), ("validation", heldout)):
        rows: Any = documents
        pq.write_table(table(rows), folder / f"{name}.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two texts with held-out files of their own; the second trains on two that the first holds
    out, and a third text is split by hash."""
    write(tmp_path / "en", EN, HELD)
    write(tmp_path / "de", [*DE, HELD[3], f"{HELD[5]}\n"], texts(9, "fresh"))
    (tmp_path / "web.jsonl").write_bytes(json_lines([*texts(300, "web"), *HELD]))
    return tmp_path


def config(folder: Path, *names: str) -> DataConfig:
    source = tuple(f"{folder / name}=1" for name in names)
    return DataConfig(source, "bytes", cache_dir=str(folder / "c"))


def mixed(folder: Path, *names: str) -> Mixture:
    return prepare_mixture(config(folder, *names), vocab_size=300)


def size(*documents: str) -> int:
    return sum(len(document.encode()) for document in documents)


def test_what_one_text_holds_out_and_another_trains_on_is_counted_and_told(folder: Path):
    with pytest.warns(InputWarning, match=r"2 of 12 held-out documents .* training text of de, to"):
        en, de = mixed(folder, "en", "de").corpora
    counted = {"documents": 2, "bytes": size(HELD[3], HELD[5]), "texts": ["de"]}
    assert en.summary["copies"] == counted
    assert "2 of 12 held-out documents" in en.treated
    assert de.summary["copies"] == {"documents": 0, "bytes": 0, "texts": []}
    assert de.treated == ""


def test_a_text_that_is_split_by_hash_is_compared_too(folder: Path):
    with pytest.warns(InputWarning, match="are in the training text of web"):
        en, web = mixed(folder, "en", "web.jsonl").corpora
    held = web.heldout.num_documents + web.train.num_documents - 300
    assert 12 - web.heldout.num_documents <= en.summary["copies"]["documents"] <= held
    assert (
        "copies"
        not in prepare(
            DataConfig(str(folder / "web.jsonl"), "bytes", cache_dir=str(folder / "c")),
            vocab_size=300,
        ).summary
    )  # alone, its copies are on one side


def test_texts_that_are_all_split_by_hash_have_none(folder: Path):
    (folder / "more.jsonl").write_bytes(json_lines([*texts(200, "more"), *HELD]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mixed(folder, "web.jsonl", "more.jsonl")
    assert not [corpus for corpus in found.corpora if "copies" in corpus.summary]
    assert not list((folder / "c").rglob("*.documents"))


def test_a_text_so_short_that_others_of_it_are_held_out_is_told(folder: Path):
    few = [text for text in EN if content_hash(text.encode()) >= BOUND][:4]
    (folder / "few.jsonl").write_bytes(json_lines(few))
    with pytest.warns(InputWarning, match="other documents are held out than of the others"):
        mixed(folder, "few.jsonl", "web.jsonl")


def test_a_cache_that_may_only_be_read_will_do(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.warns(InputWarning):
        first = mixed(folder, "en", "de").summary
    for kept in (folder / "c").rglob("copies/*.json"):
        kept.write_text("[")  # damaged: counted again

    def refused(place: Path, data: bytes) -> None:
        raise PermissionError(13, "read-only", str(place))

    monkeypatch.setattr(mixture_module.storage, "write", refused)
    with pytest.warns(InputWarning):
        assert mixed(folder, "en", "de").summary == first


def test_listings_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.warns(InputWarning):
        first = mixed(folder, "en", "de").summary
    monkeypatch.setattr(mixture_module, "count_among", lambda texts: pytest.fail("read again"))
    with pytest.warns(InputWarning):
        assert mixed(folder, "en", "de").summary == first


def test_a_text_whose_documents_are_not_listed_is_named(folder: Path):
    alone = DataConfig(str(folder / "web.jsonl"), "bytes", cache_dir=str(folder / "c"))
    prepare(alone, vocab_size=300)
    with pytest.warns(InputWarning, match=r"are not known.* delete \S+, and the next start"):
        en, _ = mixed(folder, "en", "web.jsonl").corpora
    assert en.summary["copies"] == {"documents": 0, "bytes": 0}  # of itself alone
