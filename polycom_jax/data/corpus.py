"""`prepare`: from a data config to two token stores and a tokenizer, made once and kept."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycom_jax._errors import InputWarning, require
from polycom_jax.data.cache import Report, build_once, cache_folder, check_seal, digest, seal
from polycom_jax.data.config import DataConfig
from polycom_jax.data.documents import whole_characters
from polycom_jax.data.records import Documents
from polycom_jax.data.sources import Source, resolve
from polycom_jax.data.store import Cleaner, TokenStore, open_store, write_store
from polycom_jax.data.tokenizers import (
    BPE_PATTERN,
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    check_bpe_size,
    train_bpe,
)

FORMAT = 2
"""Version of what lies in the cache folder; raise it when the same input would give other files."""

ENCODES = "special tokens as text, pieces of a document without spaces between them"
"""How given tokenizers encode; names what differs from data that were prepared otherwise."""

MOST: Mapping[str, float] = {"replaced": 0.25, "lost": 0.5}
"""Share of the bytes above which text that the tokens do not hold is an error, and not a count:
replaced, since it is not UTF-8, and lost to the tokenizer."""

TOLD = 0.05
"""Share of U+FFFD in the text from which on a warning asks whether it is UTF-8 at all."""

_TREATMENTS = {
    "replace": "{} with undecodable bytes replaced",
    "skip": "{} not in UTF-8 left out",
    "error": "{} not in UTF-8",  # There is none: preparing would have ended.
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Prepared data.

    Attributes:
        train: token store of the documents to train on.
        heldout: token store of the documents to evaluate on.
        tokenizer: what made them.
        fingerprint: equal for equal tokens in both stores; keep it with a run and compare it on
            resuming, and between hosts.
        summary: for people and logs: source, tokenizer, vocab_size, for each split the counts of
            `write_store`, what was done with undecodable documents, and how local files were read,
            by name with the beginning of their SHA-256.
    """

    train: TokenStore
    heldout: TokenStore
    tokenizer: Tokenizer
    fingerprint: str
    summary: dict[str, Any]

    @property
    def treated(self) -> str:
        """What was not taken as it came, in a line for people; "" where there is nothing to say.

        For instance "2 empty documents left out, 1 document with undecodable bytes replaced".
        """
        treatment = _TREATMENTS[self.summary["undecodable"]]
        parts = []
        kinds = (
            ("empty", "empty {} left out"),
            ("damaged", "damaged {} left out"),
            ("undecodable", treatment),
        )
        for kind, words in kinds:
            count = _total(self.summary, kind)
            if count:
                parts.append(f"{count} " + words.format("document" if count == 1 else "documents"))
        if names := self.summary.get("other_names"):
            parts.append(
                f"{names} more {'name' if names == 1 else 'names'} of the same files left out"
            )
        if lost := _total(self.summary, "lost"):
            share = lost / _total(self.summary, "bytes")
            parts.append(
                f"{lost:,} bytes ({share:.2%}) that the tokenizer cannot give back (characters"
                " dropped, unknown or changed) not counted in bits a byte"
            )
        return ", ".join(parts)


def prepare(cfg: DataConfig, *, vocab_size: int, progress: Report | None = None) -> Corpus:
    """Tokenises a corpus, or finds it in the cache folder.

    Safe when several processes start at once: one prepares, the others wait for it.

    Args:
        cfg: which corpus and tokenizer.
        vocab_size: of a BPE to train, an upper bound; other tokenizers state their own.
        progress: takes a line at each stage's start and now and then within long ones.

    Raises:
        InputError: the source or tokenizer is not usable, there is no text in it, or what lies
            prepared in the cache folder is damaged.
    """
    report: Report = progress or (lambda message: None)
    require(
        cfg.end_of_text is None or cfg.tokenizer not in ("bytes", "bpe"),
        f"data.end_of_text={cfg.end_of_text!r} is of a tokenizer.json, and data.tokenizer="
        f"{cfg.tokenizer!r} has its own; leave it out.",
    )
    if cfg.tokenizer == "bpe":
        check_bpe_size(vocab_size)
    given = None if cfg.tokenizer == "bpe" else _given_tokenizer(cfg)
    cache = cache_folder(cfg.cache_dir)
    source = resolve(cfg, cache, report)
    encodes: dict[str, Any] = {} if given is None or given.exact else {"encodes": ENCODES}
    if given is not None and given.begin != (given.eot,):
        encodes["begin"] = list(given.begin)
    recipe = (
        ["bpe", vocab_size, cfg.bpe_train_bytes, BPE_PATTERN]
        if given is None
        else [given.fingerprint, *encodes.values()]
    )
    key = digest(FORMAT, source.fingerprint, recipe, cfg.undecodable, cfg.damaged)

    def build(folder: Path) -> None:
        _build(folder, source, given, cfg, vocab_size, report)
        seal(folder)

    folder = build_once(cache / "tokens" / key, build, timeout_s=cfg.lock_timeout_s, report=report)
    check_seal(folder)
    tokenizer = given or FileTokenizer(folder / "tokenizer.json", exact=True)
    summary = json.loads((folder / "summary.json").read_text())
    _warn_of_replaced(summary, source.name)
    return Corpus(
        train=open_store(folder / "train"),
        heldout=open_store(folder / "heldout"),
        tokenizer=tokenizer,
        fingerprint=digest(key, tokenizer.fingerprint),
        summary={
            **summary,
            "source": source.name,
            "tokenizer": cfg.tokenizer,
            "undecodable": cfg.undecodable,
            "files": dict(source.files),
            **({"heldout_files": dict(source.heldout_files)} if source.heldout_files else {}),
            **source.treated,
            **encodes,
        },
    )


def _given_tokenizer(cfg: DataConfig) -> Tokenizer:
    if cfg.tokenizer == "bytes":
        return ByteTokenizer()
    return FileTokenizer(cfg.tokenizer, end_of_text=cfg.end_of_text)


def _build(
    folder: Path,
    source: Source,
    given: Tokenizer | None,
    cfg: DataConfig,
    vocab_size: int,
    report: Report,
) -> None:
    train, heldout = source.open()
    tokenizer = given
    if tokenizer is None:
        report(f"Training a BPE of {vocab_size} tokens on {source.name}")
        _train_bpe(folder / "tokenizer.json", train, cfg, vocab_size)
        tokenizer = FileTokenizer(folder / "tokenizer.json", exact=True)
    summary: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    for name, split in (("train", train), ("heldout", heldout)):
        summary[name] = write_store(
            folder / name,
            split,
            tokenizer,
            undecodable=cfg.undecodable,
            where=split.where,
            progress=_percent(report, f"Tokenising the {name} split", len(split)),
        )
        summary[name]["damaged"] += split.left_out
    _check_kept(summary, source.name)
    (folder / "summary.json").write_text(json.dumps(summary))


def _check_kept(summary: Mapping[str, Any], name: str) -> None:
    """Raises `InputError` where the tokens say nothing of most of the text."""
    for kind, words in (
        ("replaced", "is not UTF-8; convert it, with `iconv -f ENCODING -t UTF-8` for instance."),
        (
            "lost",
            "cannot be given back by the tokenizer (characters dropped, unknown or changed): it is"
            " for other text. Take 'bpe', 'bytes', or one with these characters in its vocabulary.",
        ),
    ):
        share = _total(summary, kind) / _total(summary, "bytes")
        require(share <= MOST[kind], f"{name}: {share:.0%} of the text {words}")


def _warn_of_replaced(summary: Mapping[str, Any], name: str) -> None:
    share = _total(summary, "replaced") / _total(summary, "bytes")
    if share >= TOLD:
        text = (
            f"{name}: {share:.0%} of the text is U+FFFD in the place of bytes that are not UTF-8,"
            " and the model learns to write that. Convert the text, with `iconv -f ENCODING -t"
            " UTF-8` for instance (UTF-16 without a byte-order mark is -f UTF-16LE), or leave such"
            " documents out with data.undecodable='skip'."
        )
        warnings.warn(text, InputWarning, stacklevel=3)


def _total(summary: Mapping[str, Any], kind: str) -> int:
    return sum(summary[split].get(kind, 0) for split in ("train", "heldout"))


def _percent(report: Report, what: str, total: int) -> Callable[[int], None]:
    """Reports `what` at once, and again with the share done whenever the percentage moves."""
    last = 0
    report(what)

    def tell(done: int) -> None:
        nonlocal last
        percent = 100 * done // total
        if percent > last:
            last = percent
            report(f"{what}: {percent} %")

    return tell


def _train_bpe(path: Path, train: Documents, cfg: DataConfig, vocab_size: int) -> None:
    """Trains on every k-th document, so that about `bpe_train_bytes` come from the whole corpus.

    A long document is cut: it would outweigh the others, and a trainer holds what it is given.
    """
    most = -(-cfg.bpe_train_bytes // 8)
    stride = max(1, round(len(train) * train.mean_bytes(most) / cfg.bpe_train_bytes))
    cut = (raw and _beginning(raw, most) for raw in train.every(stride))
    cleaner = Cleaner(cfg.undecodable, lambda index: train.where(index * stride))
    train_bpe(cleaner.texts(cut), vocab_size, path)


def _beginning(raw: bytes, size: int) -> bytes:
    return raw if len(raw) <= size else raw[: whole_characters(raw[:size])]
