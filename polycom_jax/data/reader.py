"""What a source is to the rest: origins (files, splits) in a fixed order, each read by rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from polycom_jax._errors import InputError
from polycom_jax.data.heldout import content_hash, is_heldout
from polycom_jax.data.rows import Row

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

Side = Literal["train", "heldout", "by hash"]
"""Where the documents of an origin go: to one split, or each by the hash of its content."""


class ChangedError(InputError):
    """A source is written to while it is read."""

    @classmethod
    def of(cls, name: str) -> "ChangedError":
        """What to say of the source of that name."""
        return cls(
            f"{name} was changed while it was prepared; start again when nothing writes to it any"
            " more."
        )


class Origin(NamedTuple):
    """A file, or a split of TFDS.

    Attributes:
        name: for people.
        size: bytes, roughly: by these it is cut, and progress is told.
        side: where its documents go.
        read_to_cut: it must be read to its end to know where it can be cut.
        content: equal where equal documents are read, here or anywhere; "": nobody knows.
    """

    name: str
    size: int
    side: Side
    read_to_cut: bool = False
    content: str = ""


class Reader(Protocol):
    """Reads a source, on any machine that reaches it: it can be pickled."""

    @property
    def origins(self) -> Sequence[Origin]:
        """In the order that their documents have."""
        ...

    def rows(self, origin: int, first: int = 0, last: int | None = None) -> Iterator[Row]:
        """The documents in these rows of an origin; the same on every call.

        Raises:
            InputError: something cannot be read, or is damaged and not to be left out, or is not
                what it was when the reader was made.
        """
        ...

    def cuts(self, origin: int, most: int) -> list[int]:
        """Rows at which the origin can be cut into parts of about `most` bytes."""
        ...


class Taken(NamedTuple):
    """How a file is taken.

    Attributes:
        name: for people.
        side: where its documents go.
        document_bytes: the size that it is cut at; 0: it says itself where documents end.
        size: bytes of its text; 0: nobody knows before it is unpacked.
    """

    name: str
    side: Side
    document_bytes: int = 0
    size: int = 0

    def agrees(self, other: "Taken") -> bool:
        """Whether, of one file taken twice, neither trains on what the other holds out."""
        return self._parted == other._parted

    @property
    def _parted(self) -> tuple[Side, int]:
        """Equal where the same of a file is held out."""
        if self.side != "by hash":
            return self.side, 0
        # What is no longer than the size to cut at is one document, whatever that size.
        return self.side, self.size if 0 < self.size <= self.document_bytes else self.document_bytes

    def __str__(self) -> str:
        """In words."""
        if self.side != "by hash":
            return "all of it held out" if self.side == "heldout" else "all of it trained on"
        cut = f"documents of {self.document_bytes} bytes" if self.document_bytes else "documents"
        return f"{cut} held out by hash"


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    Attributes:
        name: for people.
        fingerprint: equal where the documents and their splits are equal; known before anything is
            written, so that what is prepared already need not be read again.
        open: makes the source readable if it is not yet, and returns what reads it.
        unchanged: whether it still has this fingerprint.
        files: local files to train on by name, and the beginning of their checksum: by these people
            find what has changed. Of more than `LISTED_FILES`, none.
        heldout_files: the same of files that are held out by name.
        treated: how they are read, for a run's record.
        taken: how each file is taken, by its checksum, whatever their number.
        heldout_name: what messages call the text that is held out by name.
        earlier: the fingerprint that earlier versions gave the same text, where that was another;
            it may take a while.
    """

    name: str
    fingerprint: str
    open: Callable[[], Reader]
    unchanged: Callable[[], bool] = lambda: True
    files: Mapping[str, str] = field(default_factory=dict)
    heldout_files: Mapping[str, str] = field(default_factory=dict)
    treated: Mapping[str, Any] = field(default_factory=dict)
    taken: Mapping[str, Taken] = field(default_factory=dict)
    heldout_name: str = ""
    earlier: Callable[[], str] = lambda: ""


def split_of(side: Side, raw: bytes | None, bound: int) -> Split:
    """The split that a document belongs to."""
    if side == "by hash":
        return "heldout" if is_heldout(raw, bound) else "train"
    return side


def hashes(reader: Reader) -> Iterator[int]:
    """The content hashes of all documents that could be read."""
    for raw in raws(reader, "by hash"):
        if raw is not None:
            yield content_hash(raw)


def train_rows(reader: Reader, bound: int) -> Iterator[Row]:
    """The documents to train on that could be read, in order."""
    for index, origin in enumerate(reader.origins):
        if origin.side == "heldout":
            continue
        for name, raw in reader.rows(index):
            if raw is not None and split_of(origin.side, raw, bound) == "train":
                yield name, raw


def raws(reader: Reader, wanted: Side) -> Iterator[bytes | None]:
    """The documents of all origins of a side, in order."""
    for index, origin in enumerate(reader.origins):
        if origin.side == wanted:
            yield from (raw for _, raw in reader.rows(index))
