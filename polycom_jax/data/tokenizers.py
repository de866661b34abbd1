"""Text to token ids and back: raw bytes, a trained byte-level BPE, or a given `tokenizer.json`.

The first two give any text back exactly; of a given one, `shard` counts what it loses. Text
is only ever text: where it spells a special token, `<|endoftext|>` for instance, that is encoded as
ordinary characters.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.data.encoding import Encoder
from polycom_jax.data.tokenizer_files import (
    NAME,
    begin_ids,
    end_named,
    end_numbered,
    read_beside,
    with_end,
    write_beside,
)
from polycom_jax.storage import Place

EOT = "<|endoftext|>"
EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
"""End-of-text tokens that a given tokenizer is searched for, in this order."""

_MOST_GAPS = 1024
"""Ids without a token that any vocabulary may have, beside as many as it has tokens."""

LONGEST_PIECE = 1024
"""Characters of a piece that a BPE is trained on: the trainer's time goes with the square of it."""

BPE_PATTERN = (
    r"[^\s\p{L}\p{N}]?[\p{L}\p{M}]+"  # a word, with one sign before it: _name .name (name
    r"| [\p{L}\p{M}]+"  # a word with its space
    r"|\p{N}{1,3}"  # digits by threes at most
    r"| ?[^\s\p{L}\p{M}\p{N}]+"  # other signs
    r"|\s*[\r\n]+[ \t]*"  # line ends and the indentation after them: one piece, as Python means it
    r"|\s+(?!\S)|\s+"  # other white space
)
"""Merges never cross these pieces. On Python they give longer tokens than GPT-2's pattern does."""


class Tokenizer(Protocol):
    """What the rest of the project knows of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        ...

    @property
    def eot(self) -> int:
        """The id that stands after a document; text never encodes to it."""
        ...

    @property
    def begin(self) -> tuple[int, ...]:
        """The ids before a text: what the tokenizer itself puts there, else the end of text."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids."""
        ...

    @property
    def exact(self) -> bool:
        """Is it known to give any text back exactly?"""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, `uint32 [tokens]`, without any special token."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text."""
        ...

    def lead(self, text: str) -> str:
        """What to encode before `text` where it goes on another, and whose ids to take away."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens give nothing, bytes that are not UTF-8 give U+FFFD."""
        ...

    def save(self, path: Place) -> None:
        """Writes all of it to one JSON file, for `load_tokenizer`."""
        ...


_BYTES = {"type": "bytes"}
"""What stands in the file of a `ByteTokenizer`."""


class ByteTokenizer:
    """The 256 values of a byte and, as id 256, the end of a text."""

    vocab_size = 257
    eot = 256
    fingerprint = "bytes"
    exact = True

    @property
    def begin(self) -> tuple[int, ...]:
        """The end of the text before."""
        return (self.eot,)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The UTF-8 bytes of each text."""
        return [self.encode(text) for text in texts]

    def encode(self, text: str) -> np.ndarray:
        """The UTF-8 bytes of the text."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    def lead(self, text: str) -> str:
        """Nothing: bytes are bytes wherever they stand."""
        return ""

    def decode(self, ids: Iterable[int]) -> str:
        """The text whose bytes these are."""
        return bytes(i for i in map(int, ids) if i < 256).decode("utf-8", "replace")

    def save(self, path: Place) -> None:
        """Writes that the tokens are bytes; there is nothing more to tell."""
        storage.write(path, json.dumps(_BYTES).encode() + b"\n")


class FileTokenizer:
    """A Hugging Face `tokenizer.json`, ours or a given one.

    What a given one adds to texts, cuts off or draws by lot is left out of their ids; what it adds
    before them is `begin`. Files beside it of the names that Hugging Face gives them are read too:
    they say which token ends a text (tokenizer_config.json, special_tokens_map.json, and the
    model's own config.json or generation_config.json), else the first of `EOT_NAMES` does.

    Args:
        path: of the file.
        exact: it is known to give any text back exactly, as those of `train_bpe` do.
        end_of_text: the token that ends a text, whatever the files say; None: theirs.

    Raises:
        InputError: no such file, not a tokenizer, no end of text in it, or ids far beyond the
            number of its tokens.
    """

    def __init__(
        self, path: str | Place, *, exact: bool = False, end_of_text: str | None = None
    ) -> None:
        path = storage.named(path if storage.is_remote(path) else Path(path).expanduser())
        require(
            not storage.is_folder(path),
            f"Tokenizer {str(path)!r} is a folder; name the file in it: {path / 'tokenizer.json'}.",
        )
        require(
            storage.is_file(path),
            f"Tokenizer {str(path)!r}: no such file; use 'bpe', 'bytes' or a path.",
        )
        try:
            self._text = storage.read(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        self._model, tree = _read_tokenizer(path, self._text)
        vocabulary: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        require(bool(vocabulary), f"{path} has an empty vocabulary; train it anew.")
        self.vocab_size = max(vocabulary.values()) + 1
        require(
            self.vocab_size <= 2 * len(vocabulary) + _MOST_GAPS,
            f"{path} has ids up to {self.vocab_size - 1} for {len(vocabulary)} tokens; a model has"
            " a row for every id up to the largest. Number them without such gaps.",
        )
        self.eot = self._find_end(path, vocabulary, end_of_text)
        self.begin = begin_ids(self._model) or (self.eot,)
        require(
            max(self.begin) < self.vocab_size,
            f"{path}: its post-processor puts ids {list(self.begin)} before a text, and there are"
            f" {self.vocab_size}.",
        )
        self.exact = exact
        self._encode = Encoder(self._model, tree, self.eot, str(path))

    def _find_end(self, path: Place, vocabulary: Mapping[str, int], named: str | None) -> int:
        """The id that ends a text; a copy says the same by itself, and the fingerprint too."""
        self._beside = read_beside(path)
        by_name = next((vocabulary[name] for name in EOT_NAMES if name in vocabulary), None)
        own = end_named(self._beside, self._model, path.parent)
        if named is not None:
            end = vocabulary.get(named)
            require(end is not None, f"end_of_text={named!r} is no token of {path}.")
        else:
            end = end_numbered(path, self._model) if own is None else own
            end = by_name if end is None else end
        if end is None:
            raise InputError(
                f"{path} has no end-of-text token; it needs one of {', '.join(EOT_NAMES)}, or"
                " another that a tokenizer_config.json beside it calls eos_token, or that"
                " data.end_of_text (in experiments.evaluate: end_of_text) names."
            )
        token = self._model.id_to_token(end)
        require(
            token is None or len(token) > 1 or self._is_special(end),
            f"{path}: {token!r} is to end a text, and is a sign that texts hold; name a token that"
            f" stands for nothing else, such as {EOT_NAMES[0]} (data.end_of_text).",
        )
        if end != (by_name if own is None else own):
            self._beside = with_end(self._beside, self._model.id_to_token(end))
        told = b"" if end == by_name else f" ends with {end}".encode()
        self.fingerprint = hashlib.sha256(self._text + told).hexdigest()[:32]
        return end

    def _is_special(self, index: int) -> bool:
        added = self._model.get_added_tokens_decoder()
        return index in added and added[index].special

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, no special token added.

        Raises:
            InputError: a character that the tokenizer has no id for, not even an unknown token.
        """
        return self._encode(texts)

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text, no special token added."""
        return self.encode_batch([text])[0]

    def lead(self, text: str) -> str:
        """See `Encoder.lead`; nothing for an exact one, which puts nothing before a text."""
        return "" if self.exact else self._encode.lead(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids."""
        return self._model.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: Place) -> None:
        """Writes the `tokenizer.json` as it was read, byte for byte, and what lay beside it."""
        storage.write(path, self._text)
        write_beside(path, self._beside)


def _read_tokenizer(path: Place, text: bytes) -> tuple[Any, dict[str, Any]]:
    """The tokenizer, and what stands in its file."""
    import tokenizers

    try:
        model, tree = tokenizers.Tokenizer.from_buffer(text), json.loads(text)
        if tree["model"].get("dropout"):  # Of a BPE: merges left out at random.
            tree["model"]["dropout"] = None
            model = tokenizers.Tokenizer.from_str(json.dumps(tree))
        return model, tree
    except Exception as error:  # The binding raises plain `Exception`.
        raise InputError(f"{path} is not a Hugging Face tokenizer.json: {error}.") from error


def load_tokenizer(
    path: Place, *, exact: bool = False, end_of_text: str | None = None
) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to `path`; its fingerprint is the same.

    `exact` and `end_of_text` are for a Hugging Face one, as in `FileTokenizer`.

    Raises:
        InputError: no such file, or neither ours nor a Hugging Face `tokenizer.json`.
    """
    try:
        is_bytes = json.loads(storage.read(path)) == _BYTES
    except (OSError, ValueError):
        is_bytes = False  # Then it is for the other to say what is wrong with the file.
    return (
        ByteTokenizer() if is_bytes else FileTokenizer(path, exact=exact, end_of_text=end_of_text)
    )


def packed(tokenizer: Tokenizer) -> dict[str, bytes]:
    """What `Tokenizer.save` writes, by name: it can be sent to another machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(folder / NAME)
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def unpacked(files: Mapping[str, bytes], *, exact: bool) -> Tokenizer:
    """The tokenizer that `packed` was given."""
    with tempfile.TemporaryDirectory() as name:
        for file, text in files.items():
            path = Path(name, file)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)
        return load_tokenizer(Path(name, NAME), exact=exact)


def train_bpe(texts: Iterator[str], vocab_size: int, path: Place) -> None:
    """Trains a byte-level BPE and writes its `tokenizer.json`; the same texts give the same file.

    Args:
        texts: what to train on.
        vocab_size: number of ids, end of text included; a small corpus may give fewer.
        path: of the file.

    Raises:
        InputError: `vocab_size` has no room for the 256 bytes and the end of text.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    check_bpe_size(vocab_size)
    model = tokenizers.Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(tokenizers.Regex(BPE_PATTERN), "isolated")
    short = pre_tokenizers.Split(tokenizers.Regex(rf"[\s\S]{{1,{LONGEST_PIECE}}}"), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([pieces, short, to_bytes])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    model.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    storage.write(path, model.to_str(pretty=False).encode())


def check_bpe_size(vocab_size: int) -> None:
    """Raises `InputError` for a BPE vocabulary without room for the bytes and the end of text."""
    require(
        vocab_size >= 257,
        f"vocab_size={vocab_size} is too small for a byte-level BPE: 256 bytes and the end of text"
        " need 257; raise it, or use the 'bytes' tokenizer.",
    )
