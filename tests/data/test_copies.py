"""Held-out documents that are trained on, too, are counted and told; their number is exact."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import json_lines, texts

from polycom_jax import storage
from polycom_jax._errors import InputError, InputWarning
from polycom_jax.data import Corpus, DataConfig, copies, pieces
from polycom_jax.data.corpus import open_prepared
from polycom_jax.data.preparing import Team, begin, finish, make
from polycom_jax.data.request import Request, request

TRAINED = texts(60, "trained")
FRESH = texts(12, "fresh")


def quietly(message: str) -> None:
    del message


def asked(folder: Path, cache: object, heldout: str | None, **more: Any) -> Request:
    cfg = DataConfig(str(folder / "train.jsonl"), "bytes", cache_dir=str(cache), **more)
    other = heldout and str(folder / heldout)
    return request(DataConfig(**{**vars(cfg), "heldout": other}), 300, quietly)


def prepared(*args: Any, **more: Any) -> Corpus:
    found = asked(*args, **more)
    if not found.done:
        make(found, quietly, Team(), 500)
    return open_prepared(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A text to train on, and several to hold out."""
    (tmp_path / "train.jsonl").write_bytes(json_lines(TRAINED))
    (tmp_path / "fresh.jsonl").write_bytes(json_lines(FRESH))
    some = [*FRESH, TRAINED[3], f"\n {TRAINED[50]}\n\n", TRAINED[3]]
    (tmp_path / "some.jsonl").write_bytes(json_lines(some))
    long = ["x" * 60_000, "and " * 9_000, TRAINED[7]]
    (tmp_path / "long.jsonl").write_bytes(json_lines(long))
    return tmp_path


def size(*documents: str) -> int:
    return sum(len(document.encode()) for document in documents)


def test_copies_are_counted_whatever_piece_they_are_in_and_white_space_at_their_ends(folder: Path):
    with pytest.warns(InputWarning, match=r"some\.jsonl: 3 of 15 held-out documents \(.* trained"):
        found = prepared(folder, folder / "c", "some.jsonl")
    bytes_ = size(TRAINED[3], TRAINED[50], TRAINED[3]) + 4
    assert found.summary["copies"] == {"documents": 3, "bytes": bytes_}
    share = bytes_ / found.heldout.num_bytes
    told = f"3 of 15 held-out documents ({share:.1%} of their bytes) are in the training text, too"
    assert found.treated == told  # which is true of it also where another model reads it


def test_few_are_told_without_a_warning(folder: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = prepared(folder, folder / "c", "long.jsonl")
    assert found.summary["copies"] == {"documents": 1, "bytes": size(TRAINED[7])}
    assert found.treated.startswith("1 of 3 held-out documents (0.")


def test_a_text_without_copies_is_known_to_have_none(folder: Path):
    found = prepared(folder, folder / "c", "fresh.jsonl")
    assert found.summary["copies"] == {"documents": 0, "bytes": 0}
    assert found.treated == ""


@pytest.mark.parametrize("heldout", [None, "train.jsonl"])
def test_by_hash_copies_stay_on_one_side_and_the_text_itself_is_meant(
    folder: Path, heldout: str | None
):
    found = asked(folder, folder / "c", heldout)
    corpus = prepared(folder, folder / "c", heldout)
    assert "copies" not in corpus.summary
    assert not list(Path(found.folder).glob("*/*.documents"))


def test_pieces_taken_over_are_compared_with_another_held_out_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared(folder, folder / "c", "fresh.jsonl")
    tokenised: list[int] = []
    real = pieces.tokenise

    def noting(job: pieces.Job, piece: int, tokenizer: Any) -> Any:
        tokenised.append(piece)
        return real(job, piece, tokenizer)

    monkeypatch.setattr(pieces, "tokenise", noting)
    with pytest.warns(InputWarning):
        found = prepared(folder, folder / "c", "some.jsonl")
    assert found.summary["copies"]["documents"] == 3
    assert len(tokenised) < 5  # of some 30


def test_pieces_of_an_earlier_version_are_done_and_nothing_is_said(folder: Path):
    found = asked(folder, folder / "c", "some.jsonl")
    job, tokenizer = begin(found, quietly, 500)
    for piece in job.missing():
        pieces.write_piece(job, piece, tokenizer)
    storage.remove(storage.place(job.folder) / copies.listing_name("train", 1))
    finish(found, job, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = open_prepared(found)
    assert "copies" not in corpus.summary


def test_pieces_of_an_earlier_version_are_not_taken_over_nor_said_to_be(folder: Path):
    first = asked(folder, folder / "c", "fresh.jsonl")
    prepared(folder, folder / "c", "fresh.jsonl")
    for listing in Path(first.folder).glob("*/*.documents"):
        listing.unlink()
    second, lines = asked(folder, folder / "c", "some.jsonl"), list[str]()
    make(second, lines.append, Team(), 500)
    assert not [line for line in lines if "lie prepared" in line]
    with pytest.warns(InputWarning):
        assert open_prepared(second).summary["copies"]["documents"] == 3


def test_documents_of_white_space_alone_are_no_copies(folder: Path):
    (folder / "train.jsonl").write_bytes(json_lines([*TRAINED, " ", "\n\n"]))
    (folder / "blank.jsonl").write_bytes(json_lines([*FRESH, "\n", "\t "]))
    found = prepared(folder, folder / "c", "blank.jsonl")
    assert found.heldout.num_documents == len(FRESH) + 2
    assert found.summary["copies"] == {"documents": 0, "bytes": 0}


def test_held_out_hashes_are_not_sorted_anew_for_each_piece(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    found = asked(folder, folder / "c", "fresh.jsonl")
    make(found, quietly, Team(), 500)
    sorts: list[str] = []
    for name in ("sort", "unique", "intersect1d", "isin"):
        real = getattr(np, name)
        monkeypatch.setattr(np, name, lambda *a, _f=real, _n=name: sorts.append(_n) or _f(*a))
    number = len(list(Path(found.folder).glob("pieces/*.json")))
    assert number > 5
    assert copies.count_copies(found.folder, number) == {"documents": 0, "bytes": 0}
    assert len(sorts) < 5


def test_a_damaged_listing_is_named(folder: Path):
    found = asked(folder, folder / "c", "some.jsonl")
    make(found, quietly, Team(), 500)
    listing = Path(found.folder) / copies.listing_name("train", 1)
    listing.write_bytes(listing.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"000001\.documents is damaged"):
        copies.count_copies(found.folder, 2)


def test_in_a_bucket_they_are_counted_alike(folder: Path, bucket: str):
    with pytest.warns(InputWarning):
        found = prepared(folder, f"{bucket}/c", "some.jsonl")
    assert found.summary["copies"]["documents"] == 3
