"""A tokenizer as `transformers` reads it: the ids of training."""

from experiments.run.hf_tokenizer import byte_level, byte_signs, save_tokenizer
from polycom_jax.data import ByteTokenizer, FileTokenizer
from polycom_jax.data.tokenizers import train_bpe


def test_each_byte_has_its_own_sign():
    assert len(set(byte_signs())) == 256
    model = byte_level(ByteTokenizer())
    text = "".join(map(chr, range(1, 0x250))) + "漢✓"
    assert model.encode(text).ids == list(text.encode())
    assert model.decode(list(text.encode())) == text


def test_an_exported_tokenizer_begins_a_text_as_training_does(tmp_path):
    import tokenizers

    train_bpe(iter(["some text and some more text"] * 9), 300, tmp_path / "bpe.json")
    ours = FileTokenizer(tmp_path / "bpe.json")
    save_tokenizer(tmp_path, ours, context_length=8)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = theirs.encode("more text").ids
    assert ids == [ours.eot, *ours.encode("more text").tolist()]
    back = FileTokenizer(tmp_path / "tokenizer.json")
    assert back.encode("more text").tolist() == ours.encode("more text").tolist()
