"""Files beside a tokenizer.json: which token ends a text, what stands before one, and copies."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stores import store_of

from polycom_jax import InputError
from polycom_jax.data import DataConfig, prepare, windows
from polycom_jax.data.tokenizers import FileTokenizer, load_tokenizer, train_bpe

B, E = "<|begin|>", "<|ends here|>"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe(iter(["some text and some more text"] * 9), 270, path)
    return path


def made(bpe: Path, folder: Path, *special: str, begin: str | None = None, **beside) -> Path:
    """A tokenizer with these special tokens first and no other; JSON files beside it."""
    import tokenizers
    from tokenizers import processors

    tree = json.loads(bpe.read_text())
    (old,) = tree["added_tokens"]
    vocabulary = [name for name in tree["model"]["vocab"] if name != old["content"]]
    tree["added_tokens"] = [old | {"id": i, "content": name} for i, name in enumerate(special)]
    tree["model"]["vocab"] = {name: i for i, name in enumerate([*special, *vocabulary])}
    model = tokenizers.Tokenizer.from_str(json.dumps(tree))
    if begin is not None:
        model.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, model.token_to_id(begin))]
        )
    folder.mkdir(exist_ok=True)
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    "beside",
    [
        {"tokenizer_config": {"eos_token": E}},
        {"tokenizer_config": {"eos_token": {"content": E, "lstrip": False}}},
        {"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": E}},
        {"tokenizer_config": {}, "config": {"eos_token_id": 1}},
        {"config": {"eos_token_id": [1, 0]}},
        {"config": {"eos_token_id": []}, "generation_config": {"eos_token_id": [1]}},
        # The tokenizer's own word goes before the model's.
        {"tokenizer_config": {"eos_token": E}, "config": {"eos_token_id": 0}},
    ],
)
def test_the_end_of_text_is_the_one_that_is_stated(bpe, beside, tmp_path):
    given = FileTokenizer(made(bpe, tmp_path / "a", B, E, **beside))
    assert given.eot == 1
    text = f"{E} some text"
    assert 1 not in given.encode(text)
    assert given.decode(given.encode(text)) == text
    # A copy says the same by itself.
    (tmp_path / "b").mkdir()
    given.save(tmp_path / "b" / "tokenizer.json")
    copy = load_tokenizer(tmp_path / "b" / "tokenizer.json")
    assert (copy.eot, copy.fingerprint) == (1, given.fingerprint)
    assert not (tmp_path / "b" / "config.json").exists()


def test_a_stated_end_goes_before_a_usual_name(bpe, tmp_path):
    usual = FileTokenizer(made(bpe, tmp_path / "a", "</s>", E))
    assert usual.eot == 0
    stated = FileTokenizer(made(bpe, tmp_path / "b", "</s>", E, config={"eos_token_id": 1}))
    assert stated.eot == 1
    assert stated.fingerprint != usual.fingerprint
    flagged = FileTokenizer(tmp_path / "a" / "tokenizer.json", end_of_text=E)
    assert (flagged.eot, flagged.fingerprint) == (1, stated.fingerprint)
    flagged.save(tmp_path / "a" / "tokenizer.json")
    assert FileTokenizer(tmp_path / "a" / "tokenizer.json").eot == 1


def test_a_file_of_another_name_has_nothing_beside_it(bpe, tmp_path):
    path = made(bpe, tmp_path / "a", "</s>", E, tokenizer_config={"eos_token": E})
    assert FileTokenizer(path.rename(path.with_name("mine.json"))).eot == 0


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"tokenizer_config": {"eos_token": "<other>"}}, "eos_token='<other>' is no token"),
        ({"tokenizer_config": {"eos_token": 1}}, "eos_token=1 is no token"),
        ({"tokenizer_config": [E]}, "must hold an object"),
        ({"config": {"eos_token_id": 9999}}, "eos_token_id=9999 is no id"),
        ({"config": {"eos_token_id": "1"}}, "eos_token_id='1' is no id"),
        ({"config": {"eos_token_id": True}}, "eos_token_id=True is no id"),
        ({}, "no end-of-text token.*data.end_of_text"),
    ],
)
def test_what_names_no_token_is_refused(bpe, beside, message, tmp_path):
    path = made(bpe, tmp_path / "a", B, E, **beside)
    with pytest.raises(InputError, match=message):
        FileTokenizer(path)
    assert FileTokenizer(made(bpe, tmp_path / "b", B, E), end_of_text=E).eot == 1


def test_a_named_end_must_be_there_and_be_of_a_file(bpe, tmp_path):
    path = made(bpe, tmp_path / "a", B, E)
    with pytest.raises(InputError, match="end_of_text='<other>' is no token"):
        FileTokenizer(path, end_of_text="<other>")
    with pytest.raises(InputError, match=r"'Ġ' is to end a text, and is a sign that texts hold"):
        FileTokenizer(path, end_of_text="Ġ")
    for name in ("bytes", "bpe"):
        with pytest.raises(InputError, match=r"data.end_of_text='x' is of"):
            prepare(DataConfig(tokenizer=name, end_of_text="x"), vocab_size=300)


def test_a_copy_takes_all_along_byte_for_byte(bpe, tmp_path):
    about = {"eos_token": E, "bos_token": B, "chat_template": "{{ messages }}", "é": "✓"}
    path = made(bpe, tmp_path / "a", B, E, tokenizer_config=about, special_tokens_map={})
    (tmp_path / "a" / "chat_template.jinja").write_text("{% for m in messages %}\r\n")
    (tmp_path / "a" / "additional_chat_templates").mkdir()
    (tmp_path / "a" / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (tmp_path / "b").mkdir()
    FileTokenizer(path).save(tmp_path / "b" / "tokenizer.json")
    contents = [
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.j*")}
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_beginning(bpe, side, tmp_path):
    import tokenizers

    for begin, expected in ((None, (1,)), (B, (0,))):
        path = made(bpe, tmp_path / "a", B, "</s>", begin=begin)
        model = tokenizers.Tokenizer.from_file(str(path))
        model.enable_padding(length=9, direction=side, pad_id=1, pad_token="</s>")
        model.save(str(path))
        assert FileTokenizer(path).begin == expected


def test_what_begins_a_text_stands_in_the_stream_and_is_no_target(bpe, tmp_path):
    config = {"eos_token_id": 1}
    given = FileTokenizer(made(bpe, tmp_path / "a", B, E, begin=B, config=config))
    assert given.begin == (0,)
    texts = ["some text", "more", "and some more text"]
    held, _ = store_of([text.encode() for text in texts], given)
    ids = [given.encode(text).tolist() for text in texts]
    stream = [0, *ids[0], 1, 0, *ids[1], 1, 0, *ids[2], 1]
    assert held.tokens.tolist() == stream
    assert held.lengths == Counter(1 + len(one) for one in ids)  # the beginning, and no end
    for stride in (5, 3):
        seen = []
        for batch in windows.eval_batches(held, batch_size=2, seq_len=5, stride=stride):
            seen += batch["targets"][batch["mask"]].tolist()
        assert seen == [token for token in stream if token != 0]
    (batch,) = windows.eval_batches(held, batch_size=1, seq_len=len(stream) - 1)
    begins = batch["tokens"][0] == 0
    np.testing.assert_array_equal(batch["positions"][0] == 0, begins)
    np.testing.assert_array_equal(batch["segment_ids"][0], np.cumsum(begins))


def test_data_with_another_beginning_are_other_data(bpe, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some more text\n" * 3000)
    found = []
    for begin in (None, B):
        path = made(bpe, tmp_path / "a", B, "</s>", begin=begin)
        data = DataConfig(str(text), tokenizer=str(path), document_bytes=2000)
        corpus = prepare(replace_cache(data, tmp_path), vocab_size=0)
        found.append(corpus)
    assert found[0].fingerprint != found[1].fingerprint
    assert (found[0].train.begin, found[1].train.begin) == ((), (0,))
    assert found[1].summary["begin"] == [0]


def replace_cache(data: DataConfig, folder: Path) -> DataConfig:
    from dataclasses import replace

    return replace(data, cache_dir=str(folder / "cache"))
