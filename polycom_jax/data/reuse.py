"""Pieces that lie prepared already, of an earlier state of a corpus or of another one.

A piece is known by what is in it: the files, by their checksums, and the rows of each. So where one
file of many is mended, the pieces of the others need not be tokenised again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from polycom_jax import storage
from polycom_jax.data.copies import listing_name
from polycom_jax.data.files import Place
from polycom_jax.data.pieces import PIECES, PLAN, piece_name
from polycom_jax.data.plan import Content, Plan, Span, content_of
from polycom_jax.data.reader import SPLITS, Reader

_THREADS = 32


class Known(NamedTuple):
    """Where a piece lies.

    Attributes:
        folder: of the prepared data.
        piece: its number there.
        size: of its text, roughly.
    """

    folder: str
    piece: int
    size: int


def origin_contents(reader: Reader) -> list[str]:
    """What is in each origin, and where its documents go; "" where nobody knows."""
    return [origin.content and f"{origin.content} {origin.side}" for origin in reader.origins]


def find(own: Place, recipe: str, listing: bool) -> dict[Content, Known]:
    """The pieces that are done in the folders beside `own`, of the same recipe.

    With `listing`, those whose documents are listed: the others would have to be read again.
    """
    names = [name for name in storage.folders(own.parent) if name != own.name]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(partial(_done, recipe, listing), (own.parent / name for name in names))
        return {content: known for pairs in found for content, known in pairs}


def known_pieces(
    plan: Plan, contents: Sequence[str], known: Mapping[Content, Known]
) -> dict[int, tuple[str, int]]:
    """Those pieces of a plan that lie somewhere: their folder, and their number there."""
    found = {k: known.get(content_of(spans, contents)) for k, spans in enumerate(plan.pieces)}
    return {k: (one.folder, one.piece) for k, one in found.items() if one}


def _done(recipe: str, listing: bool, folder: Place) -> list[tuple[Content, Known]]:
    try:
        tree = json.loads(storage.read(folder / PLAN))
        return list(_pairs(tree, folder, listing)) if tree.get("recipe") == recipe else []
    except (OSError, ValueError):  # Another layout, or gone meanwhile: then there is nothing.
        return []


def _pairs(tree: Mapping, folder: Place, listing: bool) -> Iterator[tuple[Content, Known]]:
    done = {f"{PIECES}/{name}" for name in storage.entries(folder / PIECES)}
    lists = {f"{s}/{name}" for s in SPLITS if listing for name in storage.entries(folder / s)}

    def is_done(piece: int) -> bool:
        listed = all(listing_name(split, piece) in lists for split in SPLITS)
        return piece_name(piece) in done and (listed or not listing)

    for k, (spans, size) in enumerate(zip(tree["pieces"], tree["sizes"], strict=True)):
        content = content_of([Span(*span) for span in spans], tree["contents"])
        if content and is_done(k):
            yield content, Known(str(folder), k, size)
