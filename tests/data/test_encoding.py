"""Given tokenizers of every kind: text stays text, pieces join, and what is lost is counted."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
from stores import documents, store_of
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from polycom_jax import InputError
from polycom_jax.data import DataConfig, prepare, shard
from polycom_jax.data.encoding import lost_bytes
from polycom_jax.data.tokenizers import FileTokenizer

SIGNS = "abcdefghijklmnopqrstuvwxyz<>/\n.0"
SPECIAL = ["<s>", "</s>", "<unk>"]


def unigram() -> Any:
    pieces = [(name, 0.0) for name in SPECIAL] + [("▁", -2.0)] + [(sign, -3.0) for sign in SIGNS]
    model = hf.Tokenizer(models.Unigram(pieces, unk_id=2))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    return model


def characters(**options: Any) -> Any:
    signs = {sign: 3 + index for index, sign in enumerate(f"▁{SIGNS}")}
    vocabulary = {name: index for index, name in enumerate(SPECIAL)} | signs
    return hf.Tokenizer(models.BPE(vocab=vocabulary, merges=[], **options))


def prefixed() -> Any:
    model = characters(unk_token="<unk>")
    parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    model.normalizer = normalizers.Sequence(parts)
    ends = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(ends)
    return model


def byte_level(*, space: bool = False) -> Any:
    model = hf.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(["the river sings\n\n  under the old stones\n" * 9], trainer)
    return model


def words() -> Any:
    names = [*SPECIAL, "the", "river", "sings", "/s", "<"]
    vocabulary = {name: index for index, name in enumerate(names)}
    model = hf.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model


def saved(model: Any, path: Path, *, special: bool = True) -> FileTokenizer:
    model.add_special_tokens(SPECIAL)
    tree = json.loads(model.to_str())
    for token in tree["added_tokens"]:
        token["special"] = special
    path.write_text(json.dumps(tree))
    return FileTokenizer(path)


KINDS: dict[str, Callable[[], Any]] = {
    "unigram": unigram,
    "prefixed": prefixed,
    "bytes": byte_level,
    "bytes with a space": lambda: byte_level(space=True),
    "words": words,
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_end_of_text_stays_text(tmp_path: Path, kind: str, special: bool):
    given = saved(KINDS[kind](), tmp_path / "t.json", special=special)
    texts = ["the</s>river", "</s>", "</s></s>", " </s> <s>", "the </s> river </s"]
    for text in texts + ["ééééé</s>é"] * kind.startswith("bytes"):  # others have no id for it
        assert given.eot not in given.encode(text)
        if kind != "words":
            assert given.decode(given.encode(text)).lstrip() == text.lstrip()
    assert not set(given.encode("<s> </s>")) & {0, 1} or not special


def test_what_is_normalized_to_end_of_text_stays_text(tmp_path: Path):
    model = unigram()
    model.normalizer = normalizers.Lowercase()
    given = saved(model, tmp_path / "t.json")
    assert given.decode(given.encode("a</S>b")) == "a</s>b"


def test_a_tokenizer_whose_unknown_token_is_its_end_of_text_is_refused(tmp_path: Path):
    given = saved(characters(unk_token="</s>"), tmp_path / "t.json")
    assert given.encode("ab").size == 2
    with pytest.raises(InputError, match=r"encodes 'é' as its end-of-text token 1"):
        given.encode("aéb")


TEXTS = {
    "lines": "the river sings\n" * 40,
    "indented": "the river\n   sings\n\n\n  under\n" * 25,
    "no line ends": "the river sings under the old stones " * 20,
    "no spaces": "theriversingsundertheoldstones" * 20,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["unigram", "prefixed", "bytes", "bytes with a space"])
def test_pieces_of_a_document_join_without_what_a_text_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, text: str
):
    monkeypatch.setattr(shard, "_BLOCK_CHARACTERS", 50)
    given = saved(KINDS[kind](), tmp_path / "t.json")
    held, counts = store_of([TEXTS[text].encode(), b"end"], given)
    before = " " if kind == "bytes with a space" else ""
    assert documents(held, given) == [before + TEXTS[text], f"{before}end"]
    assert counts["lost"] == 0
    if kind == "prefixed":  # each sign for itself: as if it had not been cut
        ids = given.encode(TEXTS[text])
        np.testing.assert_array_equal(held.tokens[1 : 1 + len(ids)], ids)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_of_a_document_does_not_depend_on_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    given = saved(KINDS[kind](), tmp_path / "t.json")
    raw = ("the\nriver\né\nsings\n" * 10).encode()
    lost = []
    for length in (1 << 18, 50):
        monkeypatch.setattr(shard, "_BLOCK_CHARACTERS", length)
        lost.append(store_of([raw], given)[1]["lost"])
    assert lost[0] == lost[1]
    assert lost[0] > 0 or kind.startswith("bytes")


def test_what_was_dropped_is_lost():
    assert lost_bytes("abc", "abc") == 0
    assert lost_bytes("naïve", "nave") == 2
    assert lost_bytes("The The", "the the") == 2
    assert lost_bytes("ab", " a b ") == 0
    assert lost_bytes("日本", "<unk>") == 6


def test_a_byte_that_is_no_utf8_is_missing_once(tmp_path: Path):
    """Its U+FFFD is replaced text, and is not lost on top of that to a tokenizer without an id."""
    model = characters(unk_token="<unk>")
    model.decoder = decoders.Fuse()
    given = saved(model, tmp_path / "t.json")
    for raw, replaced, lost in (
        (b"the\xff\xffriver", 6, 0),
        (b"the\xffriver\xc3\xa9", 3, 2),
        ("the\ufffdriver".encode(), 0, 3),  # no byte was replaced: the text itself has it
    ):
        held, counts = store_of([raw], given)
        assert (counts["replaced"], counts["lost"]) == (replaced, lost)
        assert held.num_bytes == len("theriver")


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_what_a_tokenizer_cannot_give_back_is_counted_and_told(tmp_path: Path, unknown: str | None):
    model = characters() if unknown is None else characters(unk_token=unknown)
    model.decoder = decoders.Fuse()
    saved(model, tmp_path / "t.json")
    path = tmp_path / "a.jsonl"
    texts = [f"{'a' * (i + 90)}é" for i in range(50)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = DataConfig(str(path), str(tmp_path / "t.json"), cache_dir=str(tmp_path / "cache"))
    found = prepare(cfg, vocab_size=300)
    assert "100 bytes (" in found.treated
    assert "cannot give back" in found.treated
    kept = found.train.num_bytes + found.heldout.num_bytes
    assert kept == sum(len(text) - 1 for text in texts)  # so many does bits a byte count


def test_text_that_a_tokenizer_does_not_know_is_refused_and_leaves_nothing(tmp_path: Path):
    saved(characters(), tmp_path / "t.json")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "日本語" * i}) + "\n" for i in range(1, 30)))
    cfg = DataConfig(str(path), str(tmp_path / "t.json"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="100% of the text cannot be given back by the tokenizer"):
        prepare(cfg, vocab_size=300)
    assert not [p for p in (tmp_path / "cache" / "tokens").iterdir() if p.is_dir()]


@pytest.mark.parametrize("change", [{"unk_token": None}, {"unk_token": "gone"}])
def test_an_unknown_token_that_is_missing_is_told_in_a_line(tmp_path: Path, change: dict[str, Any]):
    given = saved(words(), tmp_path / "t.json")
    tree = json.loads((tmp_path / "t.json").read_text())
    tree["model"]["unk_token"] = change["unk_token"] or "[none]"
    (tmp_path / "t.json").write_text(json.dumps(tree))
    assert given.encode("stone").tolist() == [2]
    with pytest.raises(InputError, match=r"cannot encode the text .*unknown token") as caught:
        FileTokenizer(tmp_path / "t.json").encode("stone")
    assert "\n" not in str(caught.value)


def test_ids_with_large_gaps_are_refused(tmp_path: Path):
    model = words()
    saved(model, tmp_path / "t.json")
    tree = json.loads((tmp_path / "t.json").read_text())
    tree["model"]["vocab"]["far"] = 10**9
    (tmp_path / "t.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match="ids up to 1000000000 for 9 tokens"):
        FileTokenizer(tmp_path / "t.json")


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_something_wrong_in_it_is_used_or_refused_in_a_line(tmp_path: Path, kind: str):
    path, draw = tmp_path / "t.json", random.Random(kind)
    saved(KINDS[kind](), path)
    whole = json.loads(path.read_text())
    places = [place for place in _places(whole) if place and "vocab" not in place[:-2]]
    said: list[str] = []
    for _ in range(60):
        tree = json.loads(json.dumps(whole))
        *parents, last = draw.choice(places)
        at = tree
        for key in parents:
            at = at[key]
        at[last] = draw.choice([None, -1, 10**9, 2**70, 1e300, "", "(", "</s>", [], {}, True])
        path.write_text(json.dumps(tree)[: draw.choice([None, None, None, -9])])
        try:
            given = FileTokenizer(path)
            given.decode(given.encode("the river</s>é\n"))
        except InputError as error:
            said.append(str(error))
    assert len(said) > 10
    assert all(str(path) in line and "\n" not in line for line in said)


def test_merges_that_are_left_out_at_random_are_not(tmp_path: Path):
    saved(byte_level(), tmp_path / "t.json")
    tree = json.loads((tmp_path / "t.json").read_text())
    tree["model"]["dropout"] = 0.9
    (tmp_path / "random.json").write_text(json.dumps(tree))
    given, drawn = (FileTokenizer(tmp_path / f"{name}.json") for name in ("t", "random"))
    text = "the river sings under the old stones"
    np.testing.assert_array_equal(given.encode(text), drawn.encode(text))
