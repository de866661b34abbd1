"""Several corpora with weights: each prepared by itself, with one tokenizer, mixed by windows."""

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from polycom_jax import storage
from polycom_jax._errors import InputError, InputWarning, require
from polycom_jax.data.cache import Report, digest
from polycom_jax.data.config import DataConfig
from polycom_jax.data.copies import Copies, count_among, listing_name
from polycom_jax.data.corpus import ALONE, Corpus, open_prepared, warn_of_copies
from polycom_jax.data.pieces import PLAN, TOKENIZER, Place
from polycom_jax.data.plan import from_json
from polycom_jax.data.preparing import Team, alone, bound_of, make, read_bpe, trained_bpe
from polycom_jax.data.reader import Taken
from polycom_jax.data.request import FORMAT, Request, bpe_recipe, request, with_tokenizer
from polycom_jax.data.rows import Row
from polycom_jax.data.tokenizers import Tokenizer
from polycom_jax.data.weights import parts, short_names


@dataclass(frozen=True, eq=False)
class Mixture:
    """One corpus or several, with what each counts for.

    Attributes:
        names: what metrics call them; see `weights.short_names`.
        corpora: in the order that they were given in.
        weights: of each the share of the training windows; they sum to 1.
    """

    names: tuple[str, ...]
    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]

    @property
    def is_single(self) -> bool:
        """Whether there is but one."""
        return len(self.corpora) == 1

    @property
    def tokenizer(self) -> Tokenizer:
        """That of all of them."""
        return self.corpora[0].tokenizer

    @property
    def fingerprint(self) -> str:
        """Equal for equal batches of one seed: of one corpus its own, else also of the weights."""
        found = [corpus.fingerprint for corpus in self.corpora]
        return found[0] if self.is_single else digest("mixture", found, self.weights)

    def earlier(self) -> str:
        """`Corpus.earlier` of one; earlier versions had no mixtures."""
        return self.corpora[0].earlier() if self.is_single else ""

    @property
    def summary(self) -> dict[str, Any]:
        """`Corpus.summary` of one; of several these by name, with weight and fingerprint."""
        if self.is_single:
            return self.corpora[0].summary
        each = zip(self.names, self.corpora, self.weights, strict=True)
        return {
            "order": list(self.names),
            "corpora": {
                name: {"weight": weight, "fingerprint": corpus.fingerprint, **corpus.summary}
                for name, corpus, weight in each
            },
        }

    def train_batches(
        self,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        start_step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> "Iterator[dict[str, Any]]":
        """See `mixed_windows.mixed_batches`."""
        from polycom_jax.data.mixed_windows import mixed_batches

        stores = [corpus.train for corpus in self.corpora]
        how = {"seed": seed, "start_step": start_step, "rows": rows}
        return mixed_batches(stores, self.weights, batch_size=batch_size, seq_len=seq_len, **how)


def prepare_mixture(
    cfg: DataConfig,
    *,
    vocab_size: int,
    progress: Report | None = None,
    team: Team = ALONE,
    warn: Report | None = None,
) -> Mixture:
    """`prepare` for each text of `cfg.source`, one or several.

    Each has its own place in the cache folder, which other mixtures share: other weights make
    nothing anew, but for a trained BPE. That one is trained on the training documents of all, of
    `bpe_train_bytes` on each text's share by weight.

    Args:
        cfg: which corpora and tokenizer.
        vocab_size: see `prepare`.
        progress: see `prepare`.
        team: see `prepare`.
        warn: of a run that has begun with these texts, takes what is an error of a new one: a file
            that two of them have in common, and of which one trains on what the other holds out.

    Raises:
        InputError: see `prepare`; or two names are of the same text, or, without `warn`, have such
            a file in common.
    """
    report: Report = progress or (lambda message: None)
    every = requests(cfg, vocab_size, report, team, warn)
    for asked in every:
        if not asked.done:
            make(asked, report, team)
    bounds = [_bound(asked) for asked in every] if len(every) > 1 else []
    _check_bounds(every, bounds, warn)
    found = parts(cfg.source)
    names = short_names([part.source for part in found])
    weights = tuple(part.weight for part in found)
    corpora = tuple(map(open_prepared, every))
    if len(every) > 1 and any("copies" in corpus.summary for corpus in corpora):
        corpora = _compared(every, corpora, names, team)
    elif len(set(bounds)) > 1:
        text = (
            "data.source: of so short a text as one of these, other documents are held out than of"
            " the others; copies of them in these are trained on, and not counted. Held-out files"
            " of its own are looked for in all texts."
        )
        warnings.warn(text, InputWarning, stacklevel=2)
    return Mixture(names, corpora, weights)


def _compared(
    every: Sequence[Request], corpora: Sequence[Corpus], names: Sequence[str], team: Team
) -> tuple[Corpus, ...]:
    """The corpora, with the copies of held-out documents in what is trained on of any of them."""
    folders = [asked.folder for asked in every]
    key = digest("copies", [folder.name for folder in folders])
    place = folders[0].parent.parent / "copies" / f"{key}.json"  # reading the listings may be long
    counted = _counted(place)
    if team.index == 0 and counted is None:
        pieces = [len(from_json(storage.read(folder / PLAN)).pieces) for folder in folders]
        counted = count_among(list(zip(folders, pieces, strict=True)))
        if counted is not None:
            with contextlib.suppress(OSError):  # of a cache that may only be read
                storage.write(place, json.dumps(counted).encode())
    team.meet("copies")
    counted = counted or _counted(place)
    if counted is None:
        unlisted = [one for one in folders if not storage.is_file(one / listing_name("train", 0))]
        text = (
            "data.source: copies of a text's held-out documents in other texts are not known, as"
            " some text was prepared alone, or by an earlier version. To have them counted, delete"
            f" {' and '.join(map(str, unlisted or folders))}, and the next start prepares it again."
        )
        warnings.warn(text, InputWarning, stacklevel=3)
        return tuple(corpora)
    found = []
    for asked, corpus, (size, texts) in zip(every, corpora, counted, strict=True):
        among = {**size, "texts": [names[k] for k in texts]}
        compared = replace(corpus, summary={**corpus.summary, "copies": among})
        if size != corpus.summary.get("copies"):
            warn_of_copies(compared.summary, asked.source.heldout_name or asked.source.name)
        found.append(compared)
    return tuple(found)


def _counted(place: Place) -> list[Copies] | None:
    """What an earlier start has kept there; None: nothing, or what is damaged."""
    try:
        return [Copies(*each) for each in json.loads(storage.read(place))]
    except (OSError, ValueError, TypeError):
        return None


def requests(
    cfg: DataConfig,
    vocab_size: int,
    report: Report,
    team: Team = ALONE,
    warn: Report | None = None,
) -> tuple[Request, ...]:
    """What is asked for of each text; the BPE of several is trained here, if it is not there.

    Raises:
        InputError: see `prepare_mixture`.
    """
    found = parts(cfg.source)
    every = [request(replace(cfg, source=part.source), vocab_size, report) for part in found]
    if len(every) == 1:
        return tuple(every)
    _check_differ(every)
    _check_shared(every, warn)
    if cfg.tokenizer == "bpe":
        tokenizer = _common_bpe(every, [part.weight for part in found], report, team)
        every = [with_tokenizer(asked, tokenizer) for asked in every]
    listing = not all(map(_is_by_hash, every))
    return tuple(replace(asked, listing=listing) for asked in every)


def _is_by_hash(asked: Request) -> bool:
    """Whether copies are known to be on one side: all is split by hash, so those of others, too."""
    return {taken.side for taken in asked.source.taken.values()} == {"by hash"}


def _check_differ(every: Sequence[Request]) -> None:
    names: dict[str, str] = {}
    for asked in every:
        other = names.setdefault(asked.source.fingerprint, asked.source.name)
        require(
            other == asked.source.name,
            f"data.source: {other} and {asked.source.name} hold the same text; give one of them,"
            " with the sum of the weights.",
        )


def _check_shared(every: Sequence[Request], warn: Report | None) -> None:
    """Raises `InputError`, or warns, of a file of which one text would train on what another holds
    out."""
    for one, other in combinations(every, 2):
        for first, second in _shared(one, other):
            if first.agrees(second):
                continue
            sizes = [taken.document_bytes for taken in (first, second) if taken.side == "by hash"]
            alike = f"cut both alike with data.document_bytes={min(sizes, default=0)}, or "
            advice = f"{alike if len(sizes) == 2 and all(sizes) else ''}take it out of one of them"
            _refuse(
                f"{first.name} is in {one.source.name} ({first}) and in {other.source.name}"
                f" ({second}), so one would train on what the other holds out",
                advice,
                warn,
            )
            return


def _check_bounds(every: Sequence[Request], bounds: Sequence[int], warn: Report | None) -> None:
    """The same of texts so small that others of their documents are held out than of large ones."""
    for (one, bound), (other, its) in combinations(zip(every, bounds, strict=False), 2):
        split = (taken for taken, _ in _shared(one, other) if taken.side == "by hash")
        taken = next(split, None)
        if taken is None or bound == its:
            continue
        _refuse(
            f"{taken.name} is in {one.source.name} and in {other.source.name}, and one of them has"
            " so few documents that it holds out others, which the other would train on",
            "take it out of one of them",
            warn,
        )
        return


def _refuse(what: str, advice: str, warn: Report | None) -> None:
    """Raises `InputError`, or warns where a run has begun so."""
    if warn is None:
        raise InputError(f"data.source: {what}; {advice}.")
    warn(f"data.source: {what}. The run began so and goes on; its held-out loss is too low.")


def _shared(one: Request, other: Request) -> Iterator[tuple[Taken, Taken]]:
    """How each of two texts takes the files that they have in common."""
    for checksum, taken in one.source.taken.items():
        if checksum in other.source.taken:
            yield taken, other.source.taken[checksum]


def _bound(asked: Request) -> int:
    return from_json(storage.read(asked.folder / PLAN)).bound


def _common_bpe(
    every: Sequence[Request], weights: Sequence[float], report: Report, team: Team
) -> Tokenizer:
    cfg, vocab_size = every[0].cfg, every[0].vocab_size
    texts = [asked.source.fingerprint for asked in every]
    recipe = bpe_recipe(cfg, vocab_size)
    key = digest(FORMAT, texts, list(weights), recipe, cfg.undecodable, cfg.damaged)
    folder: Place = every[0].folder.parent.parent / "bpe" / key
    place = folder / TOKENIZER
    if team.index == 0:
        with alone(folder, cfg.lock_timeout_s, report, team.count == 1):
            if not storage.is_made(place):
                named = ", ".join(asked.source.name for asked in every)
                report(f"Training a BPE of {vocab_size} tokens on {named}")
                rows = _rows(every, weights)
                storage.create(place, trained_bpe(rows, cfg, vocab_size))
    team.meet("tokenizer")
    return read_bpe(folder)


def _rows(every: Sequence[Request], weights: Sequence[float]) -> Iterator[Row]:
    from polycom_jax.data import bpe

    for asked, weight in zip(every, weights, strict=True):
        reader = asked.source.open()
        wanted = max(1, round(asked.cfg.bpe_train_bytes * weight))
        yield from bpe.chosen(reader, bound_of(reader, asked.source), wanted)
