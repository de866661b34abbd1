"""How a source is cut into pieces: ranges of rows of its origins, in order, each for one shard."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
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


Content = tuple[tuple[str, int, int | None], ...]
"""What is in a piece: of each span the content of its origin, and the rows."""


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

    def to_json(
        self, origins: list[str], *, recipe: str = "", contents: Sequence[str] = ()
    ) -> bytes:
        """The contents of plan.json.

        Args:
            origins: their names, for people.
            recipe: equal for tokens that are made alike of the same text.
            contents: what is in each origin.
        """
        tree = {
            "bound": self.bound,
            "recipe": recipe,
            "contents": list(contents),
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


def content_of(spans: Sequence[Span], contents: Sequence[str]) -> Content:
    """What is in these rows of origins with these contents; () where nobody knows."""
    found = tuple((contents[span.origin], span.first, span.last) for span in spans)
    return found if all(content for content, _, _ in found) else ()


def cut(
    reader: Reader,
    bound: int,
    piece_bytes: int,
    contents: Sequence[str] = (),
    known: Mapping[Content, int] = MappingProxyType({}),
) -> Plan:
    """Cuts a source into pieces of about `piece_bytes`: large origins are cut, small ones joined.

    What is known as a piece becomes one again, whatever its size.

    Args:
        reader: of the source.
        bound: see `Plan`.
        piece_bytes: the size that is aimed at.
        contents: what is in each origin; for `known`.
        known: pieces that lie prepared, and the size of each.

    Raises:
        InputError: an origin cannot be read.
    """
    found = _Cut(reader, piece_bytes, contents, known)
    place = (0, 0)
    while place[0] < len(reader.origins):
        place = found.known_piece(*place) or found.next_span(*place)
    found.flush()
    return Plan(tuple(found.pieces), tuple(found.sizes), bound)


class _Cut:
    """The pieces so far; methods take an origin and a row of it, and return those behind."""

    def __init__(
        self,
        reader: Reader,
        piece_bytes: int,
        contents: Sequence[str],
        known: Mapping[Content, int],
    ) -> None:
        self.pieces: list[tuple[Span, ...]] = []
        self.sizes: list[int] = []
        self._held: list[Span] = []
        self._size = 0
        self._reader, self._piece_bytes, self._contents = reader, piece_bytes, contents
        self._origins = reader.origins
        self._known = known
        self._beginnings: dict[tuple[str, int], list[Content]] = {}
        for content in sorted(known, key=len, reverse=True):
            self._beginnings.setdefault(content[0][:2], []).append(content)
        self._rows: tuple[int, list[int]] = (-1, [])

    def flush(self) -> None:
        """Ends the piece that is begun, if one is."""
        if self._held:
            self._add(self._held, self._size)
            self._held, self._size = [], 0

    def known_piece(self, origin: int, first: int) -> tuple[int, int] | None:
        """Takes the longest piece that is known to be what comes next; None: there is none."""
        if not self._known:
            return None
        for content in self._beginnings.get((self._contents[origin], first), ()):
            ahead = self._contents[origin : origin + len(content)]
            if [name for name, _, _ in content] == list(ahead):
                self.flush()
                spans = [Span(origin + k, row, last) for k, (_, row, last) in enumerate(content)]
                self._add(spans, self._known[content])
                return _behind(spans[-1])
        return None

    def next_span(self, origin: int, first: int) -> tuple[int, int]:
        """Takes what comes next up to where its origin is cut, or to its end."""
        rows = self._cuts(origin)
        span = Span(origin, first, next((row for row in rows if row > first), None))
        self._held.append(span)
        self._size += self._origins[origin].size // (len(rows) + 1)
        if self._size >= self._piece_bytes or span.last is not None:
            self.flush()
        return _behind(span)

    def _add(self, spans: Sequence[Span], size: int) -> None:
        self.pieces.append(tuple(spans))
        self.sizes.append(size)

    def _cuts(self, origin: int) -> list[int]:
        if self._rows[0] != origin:
            about = self._origins[origin]
            cheap = len(self._origins) < MANY or not about.read_to_cut
            cuttable = about.size > self._piece_bytes * (1 if cheap else LARGE)
            rows = self._reader.cuts(origin, self._piece_bytes) if cuttable else []
            self._rows = origin, rows
        return self._rows[1]


def _behind(span: Span) -> tuple[int, int]:
    return (span.origin + 1, 0) if span.last is None else (span.origin, span.last)
