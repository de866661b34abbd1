"""A tokenizer as `transformers` reads it: tokenizer.json and tokenizer_config.json."""

import json
from pathlib import Path
from typing import Any

from experiments.trained import TOKENIZER
from polycom_jax.data import ByteTokenizer, Tokenizer
from polycom_jax.data.tokenizers import EOT


def save_tokenizer(folder: Path, tokenizer: Tokenizer, *, context_length: int) -> None:
    """Writes both files; ids are those of `tokenizer`.

    Where the tokenizer says nothing of its own on how a text begins, end of text goes before it, as
    in training and in `experiments.generate`.
    """
    import tokenizers
    from tokenizers import processors

    if isinstance(tokenizer, ByteTokenizer):
        model = byte_level(tokenizer)
    else:
        tokenizer.save(folder / TOKENIZER)
        model = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    name = model.id_to_token(tokenizer.eot)
    if model.post_processor is None:
        model.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, tokenizer.eot)]
        )
    model.save(str(folder / TOKENIZER))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name,
        "eos_token": name,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def byte_level(tokenizer: ByteTokenizer) -> Any:
    """`ByteTokenizer` as a BPE without merges."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {sign: byte for byte, sign in enumerate(byte_signs())}
    model = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([tokenizers.AddedToken(EOT, special=True, normalized=False)])
    assert model.token_to_id(EOT) == tokenizer.eot
    return model


def byte_signs() -> list[str]:
    """The sign that stands for each byte in a byte-level BPE: GPT-2's table.

    Printable Latin-1 stands for itself, the rest, in order, for the signs from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
