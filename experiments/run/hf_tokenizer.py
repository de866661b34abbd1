"""A tokenizer as `transformers` reads it: tokenizer.json and tokenizer_config.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run.model_loading import TOKENIZER
from polycom_jax.data import ByteTokenizer, Tokenizer
from polycom_jax.data.tokenizer_files import CONFIG, begin_ids, json_bytes
from polycom_jax.data.tokenizers import EOT
from polycom_jax.interop.huggingface import Generation


def save_tokenizer(
    folder: Path, tokenizer: Tokenizer, *, context_length: int, as_trained: bool = True
) -> None:
    """Writes both files, and the others of the first one's folder; ids are those of `tokenizer`.

    Args:
        folder: where to.
        tokenizer: of the model.
        context_length: the model's.
        as_trained: `tokenizer.begin` goes before a text, as in training and in
            `experiments.generate`; else nothing does where the tokenizer itself puts nothing there.
    """
    file, about = folder / TOKENIZER, folder / CONFIG
    model = _written(file, tokenizer)
    end = model.id_to_token(tokenizer.eot)
    begin = [model.id_to_token(index) for index in tokenizer.begin]
    silent = not begin_ids(model)
    if as_trained and silent:
        _put_before(model, begin, tokenizer.begin).save(str(file))
    if not about.is_file():
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": begin[0] if as_trained or not silent else None,
            "eos_token": end,
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
        }
    elif as_trained and silent:
        # Another class would put before a text what it is used to.
        config = json.loads(about.read_bytes()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config["bos_token"] = begin[0]
    else:
        return
    about.write_bytes(json_bytes(config))


def generation_of(tokenizer: Tokenizer) -> Generation:
    """The ids for the config.json of a model that was trained with this tokenizer."""
    ids = {"bos_token_id": tokenizer.begin[0], "eos_token_id": tokenizer.eot, "pad_token_id": None}
    return Generation(ids)


def _written(file: Path, tokenizer: Tokenizer) -> Any:
    """Writes tokenizer.json; as the `tokenizers` package has it."""
    import tokenizers

    if isinstance(tokenizer, ByteTokenizer):
        model = byte_level(tokenizer)
        model.save(str(file))
        return model
    tokenizer.save(file)
    return tokenizers.Tokenizer.from_file(str(file))


def _put_before(model: Any, names: Sequence[str], ids: Sequence[int]) -> Any:
    """The tokenizer, putting these before a text behind what it does to texts already."""
    import tokenizers

    # As its file has it: the package's own templates take no name with a space or a colon.
    tokens = zip(names, ids, strict=True)
    special = {
        f"begin{place}": {"id": f"begin{place}", "ids": [index], "tokens": [name]}
        for place, (name, index) in enumerate(tokens)
    }
    before = [{"SpecialToken": {"id": name, "type_id": 0}} for name in special]
    first, second = ([*before, {"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": special,
    }
    tree = json.loads(model.to_str())
    own = tree["post_processor"]
    both = {"type": "Sequence", "processors": [own, template]}
    tree["post_processor"] = template if own is None else both
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


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
