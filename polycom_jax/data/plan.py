"""How a source is cut into pieces: ranges of rows of its origins, in order, each for one shard."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from polycom_jax.data.reader import Reader

PIECE_BYTES = 1 << 26
"""Size of a piece that is aimed at, in bytes of the source."""


MANY, LARGE = 64, 64
"""Of so many origins, those that must be read to be cut are not, unless they are so many times as
large as a piece: there is work for many workers, and one process would have to read them all."""


class Span(NamedTuple):
    """Rows `first` to `last` (not included; None: to the end) of an origin."""

    origin: int
    first: int
    last: int | None


@dataclass(frozen=True)
class Plan:
    """The pieces of a source.

    What the tokens are does not depend on how it is cut.

    Attributes:
        pieces: in order, the spans of each.
        sizes: bytes of each, roughly.
        bound: under which a document's hash holds it out, of origins that are split by hash.
    """

    pieces: tuple[tuple[Span, ...], ...]
    sizes: tuple[int, ...]
    bound: int

    def to_json(self, origins: list[str]) -> bytes:
        """The contents of plan.json; `origins` are told for people."""
        tree = {
            "bound": self.bound,
            "origins": origins,
            "sizes": self.sizes,
            "pieces": self.pieces,
        }
        return json.dumps(tree).encode()


def from_json(text: bytes) -> Plan:
    """What `Plan.to_json` wrote."""
    tree: dict[str, Any] = json.loads(text)
    pieces = tuple(tuple(Span(*span) for span in spans) for spans in tree["pieces"])
    return Plan(pieces, tuple(tree["sizes"]), tree["bound"])


def cut(reader: Reader, bound: int, piece_bytes: int) -> Plan:
    """Cuts a source into pieces of about `piece_bytes`: large origins are cut, small ones joined.

    Raises:
        InputError: an origin cannot be read.
    """
    pieces: list[tuple[Span, ...]] = []
    sizes: list[int] = []
    held: list[Span] = []
    size = 0
    for span, part in _spans(reader, piece_bytes):
        held.append(span)
        size += part
        if size >= piece_bytes or span.last is not None:
            pieces.append(tuple(held))
            sizes.append(size)
            held, size = [], 0
    if held:
        pieces.append(tuple(held))
        sizes.append(size)
    return Plan(tuple(pieces), tuple(sizes), bound)


def _spans(reader: Reader, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    """The spans, with the bytes of each."""
    origins = reader.origins
    for index, origin in enumerate(origins):
        cheap = len(origins) < MANY or not origin.read_to_cut
        cuttable = origin.size > piece_bytes * (1 if cheap else LARGE)
        rows = reader.cuts(index, piece_bytes) if cuttable else []
        for first, last in pairwise([0, *rows, None]):
            assert first is not None
            yield Span(index, first, last), origin.size // (len(rows) + 1)
