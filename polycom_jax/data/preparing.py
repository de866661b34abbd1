"""Prepares what was asked for: plans, tokenises piece by piece, and puts the pieces together."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.data import bpe, copies, heldout, pieces, reuse
from polycom_jax.data import plan as plans
from polycom_jax.data.cache import Report, digest, locked
from polycom_jax.data.config import DataConfig
from polycom_jax.data.index import write_index
from polycom_jax.data.pieces import PLAN, TOKENIZER, Job, Place
from polycom_jax.data.reader import SPLITS, ChangedError, Reader, Source, hashes, raws
from polycom_jax.data.request import FORMAT, LAYOUT, Request
from polycom_jax.data.rows import Row
from polycom_jax.data.tokenizers import FileTokenizer, Tokenizer, packed, unpacked

MOST: Mapping[str, float] = {"replaced": 0.25, "lost": 0.5}
"""Share of the bytes above which text that the tokens do not hold is an error, and not a count:
replaced, since it is not UTF-8, and lost to the tokenizer."""


@dataclass(frozen=True)
class Team:
    """The processes that prepare data together: piece k is for the one with index k mod count.

    Attributes:
        index: of this process.
        count: how many there are.
        meet: returns once all have come to the occasion that it names.
    """

    index: int = 0
    count: int = 1
    meet: Callable[[str], None] = lambda occasion: None


def make(asked: Request, report: Report, team: Team, piece_bytes: int = plans.PIECE_BYTES) -> None:
    """Prepares the data, with the rest of a team.

    Raises:
        InputError: there is no text, or it cannot be read or encoded.
    """
    with alone(asked.folder, asked.cfg.lock_timeout_s, report, team.count == 1):
        if asked.done:
            return
        if team.index > 0:
            team.meet("plan")
        job, tokenizer = begin(asked, report, piece_bytes)
        if team.index == 0:
            team.meet("plan")
        with discarded_if_changed(job):
            own = [k for k in job.missing() if k % team.count == team.index]
            done = Progress(job, own, report)
            for piece in own:
                done(piece, pieces.write_piece(job, piece, tokenizer))
        team.meet("pieces")
        if team.index == 0:
            finish(asked, job, tokenizer)
        team.meet("index")


@contextlib.contextmanager
def alone(folder: Place, timeout_s: float, report: Report, wanted: bool) -> Iterator[None]:
    """In the block, if `wanted`, no other process of this machine makes what lies in a folder."""
    if not wanted or storage.is_remote(folder):
        yield
        return
    path = folder.with_name(f"{folder.name}.lock")
    with locked(path, timeout_s=timeout_s, report=report):
        yield


def begin(asked: Request, report: Report, piece_bytes: int) -> tuple[Job, Tokenizer]:
    """Trains a BPE if there is to be one, cuts the source into pieces, and says what to do.

    What an earlier process has left is gone on with, and what it has prepared of the same files for
    another corpus, or an earlier state of this one, is taken over.

    Raises:
        InputError: there is no text, or it cannot be read.
    """
    folder, cfg = asked.folder, asked.cfg
    reader = asked.source.open()
    planned = folder / PLAN
    plan = plans.from_json(storage.read(planned)) if storage.is_made(planned) else None
    bound = bound_of(reader, asked.source) if plan is None else plan.bound
    tokenizer = asked.given or _trained(asked, reader, bound, report)
    contents, recipe = reuse.origin_contents(reader), _recipe(asked, tokenizer, bound)
    listing = asked.listing or _compared(asked, reader)
    known = reuse.find(folder, recipe, listing) if any(contents) else {}
    if plan is None:
        sizes = {content: one.size for content, one in known.items()}
        plan = plans.cut(reader, bound, piece_bytes, contents, sizes)
        names = [origin.name for origin in reader.origins]
        storage.create(planned, plan.to_json(names, recipe=recipe, contents=contents))
        plan = plans.from_json(storage.read(planned))  # another process may have been first
    taken = reuse.known_pieces(plan, contents, known)
    if taken:
        report(f"{len(taken)} of {len(plan.pieces)} pieces of {asked.source.name} lie prepared")
    files = packed(tokenizer)
    about = (str(folder), reader, plan, files, tokenizer.exact, cfg.undecodable, asked.source.name)
    return Job(*about, taken, listing), tokenizer


def _compared(asked: Request, reader: Reader) -> bool:
    """Whether held-out documents may be in the training text, and are not meant to be."""
    sides = {origin.side for origin in reader.origins}
    return {"train", "heldout"} <= sides and asked.cfg.heldout != asked.cfg.text


def _recipe(asked: Request, tokenizer: Tokenizer, bound: int) -> str:
    """Equal where the same rows of the same files give the same tokens, to the same splits."""
    how = [tokenizer.fingerprint, tokenizer.exact, *asked.encodes.values()]
    return digest(FORMAT, LAYOUT, how, asked.cfg.undecodable, asked.cfg.damaged, bound)


def bound_of(reader: Reader, source: Source) -> int:
    """The bound under which a document of the source is held out.

    Raises:
        InputError: there is no text on a side, or a single document.
    """
    sides = {origin.side for origin in reader.origins}
    names = {"train": source.name, "heldout": source.heldout_name or source.name}
    for split in SPLITS:
        if split in sides:
            heldout.some_text(raws(reader, split), names[split])
    if "by hash" not in sides:
        return heldout.BOUND
    return heldout.heldout_below(hashes(reader), source.name)


def _trained(asked: Request, reader: Reader, bound: int, report: Report) -> Tokenizer:
    place = asked.folder / TOKENIZER
    if not storage.is_file(place):
        report(f"Training a BPE of {asked.vocab_size} tokens on {asked.source.name}")
        rows = bpe.chosen(reader, bound, asked.cfg.bpe_train_bytes)
        storage.write(place, trained_bpe(rows, asked.cfg, asked.vocab_size))
    return read_bpe(asked.folder)


def trained_bpe(rows: Iterable[Row], cfg: DataConfig, vocab_size: int) -> bytes:
    """The file of a BPE that is trained on these documents."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, TOKENIZER)
        bpe.train(path, rows, cfg, vocab_size)
        return path.read_bytes()


def read_bpe(folder: Place) -> Tokenizer:
    """The BPE that was trained for the data in `folder`."""
    if storage.is_remote(folder):
        return unpacked({TOKENIZER: storage.read(folder / TOKENIZER)}, exact=True)
    return FileTokenizer(folder / TOKENIZER, exact=True)


def finish(asked: Request, job: Job, tokenizer: Tokenizer) -> None:
    """Writes the index, once all pieces are done.

    Raises:
        InputError: the source has changed meanwhile, or most of its text is not in the tokens; then
            nothing is kept.
    """
    with discarded_if_changed(job):
        if not asked.source.unchanged():
            raise ChangedError.of(asked.source.name)
    index = pieces.build_index(job, tokenizer)
    counts = {split: about["counts"] for split, about in index["splits"].items()}
    try:
        _check_kept(counts, asked.source.name)
    except InputError:
        storage.remove_tree(asked.folder)
        raise
    index["files"] = {}
    if asked.given is None:
        data = storage.read(asked.folder / TOKENIZER)
        index["files"][TOKENIZER] = [len(data), pieces.sha256(data)]
    index["vocab_size"] = tokenizer.vocab_size
    if _compared(asked, job.reader):
        index["copies"] = copies.count_copies(asked.folder, len(job.plan.pieces))
    write_index(asked.folder, index)


@contextlib.contextmanager
def discarded_if_changed(job: Job) -> Iterator[None]:
    """Nothing is kept of a source that changes in the block: some pieces may be of its old text."""
    try:
        yield
    except ChangedError:
        storage.remove_tree(storage.place(job.folder))
        raise


def _check_kept(counts: Mapping[str, Mapping[str, int]], name: str) -> None:
    """Raises `InputError` where a split is empty, or the tokens say nothing of most of the text."""
    for split in SPLITS:
        found = counts[split]
        left = {kind: found[kind] for kind in ("empty", "damaged", "undecodable")}
        require(
            found["documents"] > 0,
            f"No usable text among the {sum(left.values())} documents of the {split} split"
            f" ({left['empty']} empty, {left['damaged']} damaged, {left['undecodable']} not UTF-8);"
            " give more text.",
        )
    for kind, words in (
        ("replaced", "is not UTF-8; convert it, with `iconv -f ENCODING -t UTF-8` for instance."),
        (
            "lost",
            "cannot be given back by the tokenizer (characters dropped, unknown or changed): it is"
            " for other text. Take 'bpe', 'bytes', or one with these characters in its vocabulary.",
        ),
    ):
        share = sum(c[kind] for c in counts.values()) / sum(c["bytes"] for c in counts.values())
        require(share <= MOST[kind], f"{name}: {share:.0%} of the text {words}")


class Progress:
    """Tells how much of the text is tokenised, how fast, and how long the rest may take."""

    def __init__(self, job: Job, wanted: list[int], report: Report) -> None:
        self._job, self._report = job, report
        self._total = max(1, sum(job.plan.sizes[piece] for piece in wanted))
        self._begun, self._size, self._tokens = time.monotonic(), 0, 0
        if wanted:
            report(f"Tokenising {job.name}")

    def __call__(self, piece: int, tokens: int) -> None:
        """A piece is done, of so many tokens."""
        self._size += self._job.plan.sizes[piece]
        self._tokens += tokens
        elapsed = max(time.monotonic() - self._begun, 1e-9)
        left = round(elapsed * (self._total - self._size) / max(1, self._size))
        self._report(
            f"Tokenising {self._job.name}: {100 * self._size // self._total} %,"
            f" {self._tokens / elapsed:,.0f} tokens/s, {left // 3600}:{left // 60 % 60:02}:"
            f"{left % 60:02} left"
        )
