"""`prepare`: from a data config to two token stores and a tokenizer, made once and kept."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from polycom_jax._errors import InputWarning
from polycom_jax.data.cache import Report, digest
from polycom_jax.data.config import DataConfig
from polycom_jax.data.index import check_files, open_split, read_index
from polycom_jax.data.preparing import Team, make, read_bpe
from polycom_jax.data.reader import SPLITS
from polycom_jax.data.request import Request, request
from polycom_jax.data.store import TokenStore
from polycom_jax.data.tokenizers import Tokenizer

ALONE = Team()

TOLD = 0.05
"""Share of U+FFFD in the text from which on a warning asks whether it is UTF-8 at all."""

COPIES_TOLD = 0.01
"""Share of the held-out bytes in the training text, too, from which on a warning says so."""

ALWAYS_TOLD = ("documents", "bytes", "tokens", "empty", "damaged", "undecodable")
"""Counts of a split that its summary has even where they are 0."""

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
            resuming, and between hosts. The same text on a disk and in a bucket has the same.
        summary: for people and logs: source, tokenizer, vocab_size, for each split the counts of
            `shard.COUNTS`, what was done with undecodable documents, and how local files were read,
            by name with the beginning of their checksum; `copies`, the held-out documents, and
            bytes of them, that are in the training text, too, where each side has files of its own
            (of a mixture: in that of any text, and these are named).
        earlier: the fingerprint that earlier versions gave the same data, "" where that is no
            other; it may take a while.
    """

    train: TokenStore
    heldout: TokenStore
    tokenizer: Tokenizer
    fingerprint: str
    summary: dict[str, Any]
    earlier: Callable[[], str] = lambda: ""

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
        if self.summary.get("copies", {}).get("documents"):
            parts.append(_copies(self.summary))
        if lost := _total(self.summary, "lost"):
            share = lost / _total(self.summary, "bytes")
            parts.append(
                f"{lost:,} bytes ({share:.2%}) that the tokenizer cannot give back (characters"
                " dropped, unknown or changed) not counted in bits a byte"
            )
        return ", ".join(parts)


def prepare(
    cfg: DataConfig, *, vocab_size: int, progress: Report | None = None, team: Team = ALONE
) -> Corpus:
    """Tokenises a corpus, or finds it in the cache folder.

    Safe when several processes start at once: of those on one machine one prepares and the others
    wait for it, unless they do it together.

    Args:
        cfg: which corpus and tokenizer.
        vocab_size: of a BPE to train, an upper bound; other tokenizers state their own.
        progress: takes a line at each stage's start and now and then within long ones.
        team: the processes that prepare it together, with one cache folder.

    Raises:
        InputError: the source or tokenizer is not usable, there is no text in it, or what lies
            prepared in the cache folder is damaged.
    """
    report: Report = progress or (lambda message: None)
    asked = request(cfg, vocab_size, report)
    if not asked.done:
        make(asked, report, team)
    return open_prepared(asked)


def open_prepared(asked: Request) -> Corpus:
    """The corpus that lies prepared.

    Raises:
        InputError: it is damaged.
    """
    cfg, source, folder = asked.cfg, asked.source, asked.folder
    index = read_index(folder)
    check_files(folder, index)
    tokenizer = asked.given or read_bpe(folder)
    stores = {split: open_split(folder, index, split) for split in SPLITS}
    summary: dict[str, Any] = {"vocab_size": index["vocab_size"]}
    for split, store in stores.items():
        counts = index["splits"][split]["counts"]
        optional = {kind: counts[kind] for kind in ("replaced", "lost") if counts[kind]}
        counts = {kind: counts[kind] for kind in ALWAYS_TOLD}
        summary[split] = {**counts, "tokens": store.num_tokens, **optional}
    if copies := index.get("copies"):
        summary["copies"] = copies
    _warn_of_replaced(summary, source.name)
    warn_of_copies(summary, source.heldout_name or source.name)
    return Corpus(
        train=stores["train"],
        heldout=stores["heldout"],
        tokenizer=tokenizer,
        fingerprint=digest(asked.key, tokenizer.fingerprint),
        summary={
            **summary,
            "source": source.name,
            "tokenizer": cfg.tokenizer,
            "undecodable": cfg.undecodable,
            "files": dict(source.files),
            **({"heldout_files": dict(source.heldout_files)} if source.heldout_files else {}),
            **source.treated,
            **asked.encodes,
        },
        earlier=partial(_earlier, asked, tokenizer),
    )


def _earlier(asked: Request, tokenizer: Tokenizer) -> str:
    key = asked.earlier_key()
    return digest(key, tokenizer.fingerprint) if key else ""


def _warn_of_replaced(summary: Mapping[str, Any], name: str) -> None:
    share = _total(summary, "replaced") / _total(summary, "bytes")
    if share >= TOLD:
        text = (
            f"{name}: {share:.0%} of the text is U+FFFD in the place of bytes that are not UTF-8,"
            " and the model learns to write that. Convert the text, with `iconv -f ENCODING -t"
            " UTF-8` for instance (UTF-16 without a byte-order mark is -f UTF-16LE), or leave such"
            " documents out with data.undecodable='skip'."
        )
        warnings.warn(text, InputWarning, stacklevel=4)


def warn_of_copies(summary: Mapping[str, Any], name: str) -> None:
    """Warns where much of the held-out text is trained on, too."""
    if _copied_share(summary) >= COPIES_TOLD:
        text = (
            f"{name}: {_copies(summary)}: of a model that is trained on that, the held-out loss is"
            " lower than on new text. Take them out of one of the two."
        )
        warnings.warn(text, InputWarning, stacklevel=4)


def _copied_share(summary: Mapping[str, Any]) -> float:
    copies = summary.get("copies")
    return copies["bytes"] / summary["heldout"]["bytes"] if copies else 0.0


def _copies(summary: Mapping[str, Any]) -> str:
    copies, held = summary["copies"]["documents"], summary["heldout"]["documents"]
    of = f" of {' and '.join(texts)}" if (texts := summary["copies"].get("texts")) else ""
    return (
        f"{copies:,} of {held:,} held-out documents ({_copied_share(summary):.1%} of their bytes)"
        f" are in the training text{of}, too"
    )


def _total(summary: Mapping[str, Any], kind: str) -> int:
    return sum(summary[split].get(kind, 0) for split in ("train", "heldout"))
