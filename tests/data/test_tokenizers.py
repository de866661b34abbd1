"""Every tokenizer gives the text back, and end of text is never text."""

import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.data import tokenizers

TEXTS = [
    "",
    "plain words",
    "def f(x):\r\n\tif x:\r\n        return x_1 + 12345\r\n\r\n\r\n# end  ",
    "\n\n    indented\n\t\ttabs \n",
    "naïve Übung 漢字 🙂👩‍👩‍👧 e\u0301 \u200b\ufeff",
    "a <|endoftext|> b </s>",
    "\x00\x01\x7f\u2028\u0085",
]


def corpus() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"]) / "json"
    return [path.read_text() for path in sorted(folder.glob("*.py"))]


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizers.train_bpe(iter(corpus()), 600, path)
    return path


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe_file: Path) -> tokenizers.Tokenizer:
    if request.param == "bytes":
        return tokenizers.ByteTokenizer()
    return tokenizers.FileTokenizer(bpe_file)


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(tokenizer: tokenizers.Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_of_text_is_never_text(tokenizer: tokenizers.Tokenizer):
    for ids in tokenizer.encode_batch(TEXTS):
        assert ids.dtype == np.uint32
        assert tokenizer.eot not in ids
        assert ids.max(initial=0) < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.eot]) == ""


def test_a_batch_equals_its_texts_one_by_one(tokenizer: tokenizers.Tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_a_cut_character_decodes_to_the_replacement_character():
    byte = tokenizers.ByteTokenizer()
    assert byte.decode(byte.encode("é")[:1]) == "\ufffd"


def test_training_a_bpe_twice_gives_the_same_file(bpe_file: Path, tmp_path: Path):
    tokenizers.train_bpe(iter(corpus()), 600, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == bpe_file.read_bytes()


def test_a_trained_bpe_has_the_size_asked_for_and_makes_text_shorter(bpe_file: Path):
    bpe = tokenizers.FileTokenizer(bpe_file)
    assert bpe.vocab_size == 600
    text = corpus()[0]
    assert 2 * len(bpe.encode(text)) < len(text.encode())


def test_a_small_corpus_gives_fewer_tokens_than_asked_for(tmp_path: Path):
    tokenizers.train_bpe(iter(["ab ab"]), 5000, tmp_path / "t.json")
    assert 257 <= tokenizers.FileTokenizer(tmp_path / "t.json").vocab_size < 270


def test_indentation_is_a_piece_of_its_own(bpe_file: Path):
    bpe = tokenizers.FileTokenizer(bpe_file)
    assert len(bpe.encode("\n        ")) == 1


@pytest.mark.parametrize("eot", ["</s>", "<eos>"])
def test_a_given_tokenizer_is_used_with_its_own_end_of_text(
    bpe_file: Path, tmp_path: Path, eot: str
):
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe_file.read_text().replace(tokenizers.EOT, eot))
    given = tokenizers.FileTokenizer(path)
    assert given.eot == 0
    assert given.decode(given.encode(f"x {eot} y")) == f"x {eot} y"
    assert given.fingerprint != tokenizers.FileTokenizer(bpe_file).fingerprint


def test_what_a_given_tokenizer_adds_or_cuts_by_itself_is_left_out(bpe_file: Path, tmp_path: Path):
    import tokenizers as hf

    path = tmp_path / "tokenizer.json"
    model = hf.Tokenizer.from_file(str(bpe_file))
    model.post_processor = hf.processors.TemplateProcessing(
        single=f"{tokenizers.EOT} $A", special_tokens=[(tokenizers.EOT, 0)]
    )
    model.enable_truncation(3)
    model.enable_padding(length=64)
    model.save(str(path))
    np.testing.assert_array_equal(
        tokenizers.FileTokenizer(path).encode("one two three four five"),
        tokenizers.FileTokenizer(bpe_file).encode("one two three four five"),
    )


def test_a_tokenizer_without_end_of_text_is_refused(bpe_file: Path, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe_file.read_text().replace(tokenizers.EOT, "<nothing>"))
    with pytest.raises(InputError, match=r"no end-of-text token.*</s>"):
        tokenizers.FileTokenizer(path)


def test_a_trainer_is_given_no_piece_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "abcd" * 5_000
    tokenizers.train_bpe(iter([text]), 300, tmp_path / "short.json")
    monkeypatch.setattr(tokenizers, "LONGEST_PIECE", 50_000)
    tokenizers.train_bpe(iter([text]), 300, tmp_path / "whole.json")
    short, whole = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("short", "whole")
    )
    assert max(map(len, short["model"]["vocab"])) <= tokenizers.LONGEST_PIECE
    assert short["pre_tokenizer"] == whole["pre_tokenizer"]  # what the run itself encodes with
    assert max(map(len, whole["model"]["vocab"])) > 1024 >= max(map(len, short["model"]["vocab"]))


def test_a_folder_is_told_from_a_missing_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"is a folder; name the file in it: .*tokenizer\.json"):
        tokenizers.FileTokenizer(tmp_path)


def test_a_missing_or_wrong_tokenizer_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        tokenizers.FileTokenizer(tmp_path / "absent.json")
    (tmp_path / "wrong.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"not a Hugging Face tokenizer\.json"):
        tokenizers.FileTokenizer(tmp_path / "wrong.json")


def test_a_bpe_without_room_for_the_bytes_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="257"):
        tokenizers.train_bpe(iter(["x"]), 256, tmp_path / "t.json")


def test_an_empty_vocabulary_is_refused(tmp_path: Path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({}, unk_token="x")).save(str(path))
    with pytest.raises(InputError, match="empty vocabulary"):
        tokenizers.FileTokenizer(path)
