"""A shard holds the documents, each after an end-of-text token, and says what went into it."""

import numpy as np
import pytest
from stores import documents, store_of

from polycom_jax import InputError
from polycom_jax.data import shard, tokenizers

BYTES = tokenizers.ByteTokenizer()


def test_the_stream_has_end_of_text_before_between_and_after_documents():
    held, counts = store_of([b"ab", "é".encode()], BYTES)
    assert held.tokens.tolist() == [256, 97, 98, 256, 0xC3, 0xA9, 256]
    assert counts["tokens"] == 6  # the last end of text is in no shard
    assert (held.num_documents, held.num_targets, held.num_bytes) == (2, 6, 4)
    assert held.tokens.dtype == np.uint16


def test_documents_come_back_whatever_batches_and_blocks_they_were_encoded_in(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(shard, "_BATCH_BYTES", 50)
    monkeypatch.setattr(shard, "_BLOCK_CHARACTERS", 7)
    texts = ["x" * 30, "one\ntwo\nthree\n" * 9, "é🙂" * 20, "a"] * 3
    held, _ = store_of([t.encode() for t in texts], BYTES)
    assert documents(held, BYTES) == texts
    assert held.num_bytes == sum(len(t.encode()) for t in texts)
    assert held.lengths == {len(t.encode()): 3 for t in texts}


@pytest.mark.parametrize(("last", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_ids_that_need_more_than_16_bits_are_kept(last: int, dtype: type):
    class Wide(tokenizers.ByteTokenizer):
        vocab_size = last + 1
        eot = last

    held, _ = store_of([b"a"], Wide())
    assert held.tokens.dtype == dtype
    assert held.tokens.tolist() == [last, 97, last]


@pytest.mark.parametrize(
    ("undecodable", "number", "text"), [("replace", 2, "a\ufffdb"), ("skip", 1, "ok")]
)
def test_documents_that_are_not_utf8_are_counted(undecodable: str, number: int, text: str):
    held, counts = store_of([b"a\xffb", b"", b"ok"], BYTES, undecodable)
    assert counts["undecodable"] == 1
    assert counts["empty"] == 1
    assert counts["documents"] == number
    assert documents(held, BYTES)[0] == text
    assert counts["tokens"] + 1 == held.num_tokens
    assert counts["bytes"] - counts["replaced"] == held.num_bytes


def test_documents_that_are_not_utf8_can_be_an_error():
    with pytest.raises(InputError, match=r"Document 2 is not UTF-8 .*byte 1"):
        store_of([b"ok", b"a\xff"], BYTES, "error")


@pytest.mark.parametrize(
    "texts", [["line\n" * 400], ["x" * 2_000], ["ab\n"] * 700], ids=["lines", "one line", "many"]
)
def test_a_tokenizer_is_given_about_a_batch_of_text_at_a_time(
    monkeypatch: pytest.MonkeyPatch, texts: list[str]
):
    monkeypatch.setattr(shard, "_BATCH_BYTES", 100)
    monkeypatch.setattr(shard, "_BLOCK_CHARACTERS", 20)
    sizes: list[int] = []

    class Noting(tokenizers.ByteTokenizer):
        def encode_batch(self, texts):
            sizes.append(sum(map(len, texts)))
            return super().encode_batch(texts)

    store_of([text.encode() for text in texts], Noting())
    assert sum(sizes) == sum(map(len, texts))
    assert max(sizes) < 100 + 20
    assert len(sizes) > 10


def test_documents_longer_than_a_context_are_counted():
    held, _ = store_of([b"a", b"abc", b"abcd", b"abcd"], BYTES)
    assert [held.documents_longer_than(n) for n in (0, 1, 2, 3, 4)] == [4, 3, 3, 2, 0]
