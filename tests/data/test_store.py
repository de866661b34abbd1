"""The token store holds the documents, each after an end-of-text token, and one more at the end."""

from pathlib import Path

import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.data import store, tokenizers

BYTES = tokenizers.ByteTokenizer()


def test_the_stream_has_end_of_text_before_between_and_after_documents(tmp_path: Path):
    store.write_store(tmp_path / "s", [b"ab", "é".encode()], BYTES)
    held = store.open_store(tmp_path / "s")
    assert held.tokens.tolist() == [256, 97, 98, 256, 0xC3, 0xA9, 256]
    assert held.offsets.tolist() == [0, 3, 6]
    assert (held.num_documents, held.num_targets, held.num_bytes) == (2, 6, 4)
    assert held.tokens.dtype == np.uint16
    assert isinstance(held.tokens, np.memmap)


def test_documents_come_back_whatever_batches_and_blocks_they_were_encoded_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "_BATCH_BYTES", 50)
    monkeypatch.setattr(store, "_BLOCK_CHARACTERS", 7)
    texts = ["x" * 30, "one\ntwo\nthree\n" * 9, "é🙂" * 20, "a"] * 3
    store.write_store(tmp_path / "s", [t.encode() for t in texts], BYTES)
    held = store.open_store(tmp_path / "s")
    spans = zip(held.offsets[:-1], held.offsets[1:], strict=True)
    assert [BYTES.decode(held.tokens[a + 1 : b]) for a, b in spans] == texts
    assert held.num_bytes == sum(len(t.encode()) for t in texts)


def test_ids_that_need_more_than_16_bits_are_kept(tmp_path: Path):
    class Wide(tokenizers.ByteTokenizer):
        vocab_size = 70_001
        eot = 70_000

    store.write_store(tmp_path / "s", [b"a"], Wide())
    held = store.open_store(tmp_path / "s")
    assert held.tokens.dtype == np.uint32
    assert held.tokens.tolist() == [70_000, 97, 70_000]


@pytest.mark.parametrize(
    ("undecodable", "documents", "text"), [("replace", 2, "a\ufffdb"), ("skip", 1, "ok")]
)
def test_documents_that_are_not_utf8_are_counted(
    tmp_path: Path, undecodable: str, documents: int, text: str
):
    counts = store.write_store(
        tmp_path / "s", [b"a\xffb", b"", b"ok"], BYTES, undecodable=undecodable
    )
    assert counts["undecodable"] == 1
    assert counts["empty"] == 1
    assert counts["documents"] == documents
    held = store.open_store(tmp_path / "s")
    assert BYTES.decode(held.tokens[1 : held.offsets[1]]) == text
    assert counts["tokens"] == len(held.tokens)
    assert counts["bytes"] - counts.get("replaced", 0) == held.num_bytes


def test_documents_that_are_not_utf8_can_be_an_error(tmp_path: Path):
    with pytest.raises(InputError, match=r"Document 2 is not UTF-8 .*byte 1"):
        store.write_store(tmp_path / "s", [b"ok", b"a\xff"], BYTES, undecodable="error")


def test_a_split_without_text_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"No usable text among the 2 documents of the s split"):
        store.write_store(tmp_path / "s", [b"", b"\xff"], BYTES, undecodable="skip")


@pytest.mark.parametrize(
    "texts", [["line\n" * 400], ["x" * 2_000], ["ab\n"] * 700], ids=["lines", "one line", "many"]
)
def test_a_tokenizer_is_given_about_a_batch_of_text_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
):
    monkeypatch.setattr(store, "_BATCH_BYTES", 100)
    monkeypatch.setattr(store, "_BLOCK_CHARACTERS", 20)
    sizes: list[int] = []

    class Noting(tokenizers.ByteTokenizer):
        def encode_batch(self, texts):
            sizes.append(sum(map(len, texts)))
            return super().encode_batch(texts)

    store.write_store(tmp_path / "s", [text.encode() for text in texts], Noting())
    assert sum(sizes) == sum(map(len, texts))
    assert max(sizes) < 100 + 20
    assert len(sizes) > 10


def test_documents_longer_than_a_context_are_counted(tmp_path: Path):
    store.write_store(tmp_path / "s", [b"a", b"abc", b"abcd", b"abcd"], BYTES)
    held = store.open_store(tmp_path / "s")
    assert [held.documents_longer_than(n) for n in (0, 1, 2, 3, 4)] == [4, 3, 3, 2, 0]
