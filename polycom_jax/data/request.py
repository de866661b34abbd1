"""What a data config asks for, known before anything is prepared, and where that lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax.data.cache import Report, cache_folder, digest, local_cache_folder
from polycom_jax.data.config import DataConfig
from polycom_jax.data.pieces import INDEX, Place
from polycom_jax.data.reader import Source
from polycom_jax.data.sources import resolve
from polycom_jax.data.tokenizers import (
    BPE_PATTERN,
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    check_bpe_size,
)

FORMAT = 2
"""Version of the tokens; raise it when the same input would give others."""

LAYOUT = 3
"""Version of how they lie in the cache folder; another one does not keep a run from going on."""

ENCODES = "special tokens as text, pieces of a document without spaces between them"
"""How given tokenizers encode; names what differs from data that were prepared otherwise."""


@dataclass(frozen=True)
class Request:
    """What a config asks for.

    Attributes:
        cfg: the config.
        vocab_size: of a BPE to train.
        source: of the documents.
        given: the tokenizer; None: a BPE is trained.
        encodes: what is told of how it encodes.
        recipe: what the tokens depend on beside the text.
        folder: where the data lie prepared.
        listing: documents are listed for `copies` however they are split, as other texts need it.
    """

    cfg: DataConfig
    vocab_size: int
    source: Source
    given: Tokenizer | None
    encodes: Mapping[str, Any]
    recipe: Sequence[Any]
    folder: Place
    listing: bool = False

    @property
    def key(self) -> str:
        """Equal for equal tokens, up to the BPE that comes out."""
        return _key(self.cfg, self.source.fingerprint, self.recipe)

    def earlier_key(self) -> str:
        """The key of earlier versions, where it was another; "" else. It may take a while."""
        earlier = self.source.earlier()
        return _key(self.cfg, earlier, self.recipe) if earlier else ""

    @property
    def done(self) -> bool:
        """Whether they are there."""
        return storage.is_file(self.folder / INDEX)


def request(cfg: DataConfig, vocab_size: int, report: Report) -> Request:
    """What `cfg` asks for; the source is looked at, and nothing is written.

    Raises:
        InputError: the source or tokenizer is not usable.
    """
    require(
        cfg.end_of_text is None or cfg.tokenizer not in ("bytes", "bpe"),
        f"data.end_of_text={cfg.end_of_text!r} is of a tokenizer.json, and data.tokenizer="
        f"{cfg.tokenizer!r} has its own; leave it out.",
    )
    _ = cfg.text
    if cfg.tokenizer == "bpe":
        check_bpe_size(vocab_size)
    given = None if cfg.tokenizer == "bpe" else _given_tokenizer(cfg)
    cache = cache_folder(cfg.cache_dir)
    source = resolve(cfg, local_cache_folder(cfg.cache_dir), report)
    found = _asked(cfg, vocab_size, source, given, cache)
    if not found.done and storage.is_folder(cache / "tokens"):
        _tell_of_old(found, cache / "tokens", report)
    return found


def _tell_of_old(found: Request, tokens: Place, report: Report) -> None:
    for key in (found.key, found.earlier_key()):
        if key and storage.is_folder(tokens / key):
            report(
                f"The prepared data in {tokens / key} are of an earlier layout; that folder can be"
                " deleted"
            )


def with_tokenizer(asked: Request, given: Tokenizer) -> Request:
    """The same text, as tokens of a BPE that is there instead of one that is trained on it."""
    folder = asked.folder.parent.parent
    return _asked(asked.cfg, asked.vocab_size, asked.source, given, folder)


def bpe_recipe(cfg: DataConfig, vocab_size: int) -> list[Any]:
    """What a trained BPE depends on beside its text."""
    return ["bpe", vocab_size, cfg.bpe_train_bytes, BPE_PATTERN]


def _asked(
    cfg: DataConfig, vocab_size: int, source: Source, given: Tokenizer | None, cache: Place
) -> Request:
    encodes: dict[str, Any] = {} if given is None or given.exact else {"encodes": ENCODES}
    if given is not None and given.begin != (given.eot,):
        encodes["begin"] = list(given.begin)
    recipe = (
        bpe_recipe(cfg, vocab_size) if given is None else [given.fingerprint, *encodes.values()]
    )
    key = _key(cfg, source.fingerprint, recipe)
    folder = cache / "tokens" / digest(LAYOUT, key)
    return Request(cfg, vocab_size, source, given, encodes, recipe, folder)


def _key(cfg: DataConfig, fingerprint: str, recipe: Sequence[Any]) -> str:
    return digest(FORMAT, fingerprint, recipe, cfg.undecodable, cfg.damaged)


def _given_tokenizer(cfg: DataConfig) -> Tokenizer:
    if cfg.tokenizer == "bytes":
        return ByteTokenizer()
    return FileTokenizer(cfg.tokenizer, end_of_text=cfg.end_of_text)
