"""How a source is cut: large origins into parts, small ones together, in order."""

from collections.abc import Iterator, Sequence

import pytest

from polycom_jax.data import plan
from polycom_jax.data.plan import Content, Span
from polycom_jax.data.reader import Origin
from polycom_jax.data.rows import Row


class Reader:
    """Origins of these sizes, a byte a row."""

    def __init__(self, *sizes: int, read_to_cut: bool = False) -> None:
        self.sizes, self.read_to_cut, self.cut = sizes, read_to_cut, list[int]()

    @property
    def origins(self) -> Sequence[Origin]:
        sized = enumerate(self.sizes)
        return [Origin(f"o{i}", size, "by hash", self.read_to_cut) for i, size in sized]

    def rows(self, origin: int, first: int = 0, last: int | None = None) -> Iterator[Row]:
        raise NotImplementedError

    def cuts(self, origin: int, most: int) -> list[int]:
        self.cut.append(origin)
        return list(range(most, self.sizes[origin], most))


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ((), ()),
        ((5,), (((0, 0, None),),)),
        ((4, 4, 4), (((0, 0, None), (1, 0, None), (2, 0, None)),)),
        ((4, 8, 3), (((0, 0, None), (1, 0, None)), ((2, 0, None),))),
        ((25,), (((0, 0, 10),), ((0, 10, 20),), ((0, 20, None),))),
        ((3, 15, 3), (((0, 0, None), (1, 0, 10)), ((1, 10, None), (2, 0, None)))),
    ],
)
def test_large_origins_are_cut_and_small_ones_joined(
    sizes: tuple[int, ...], pieces: tuple[tuple[Span, ...], ...]
):
    found = plan.cut(Reader(*sizes), 7, 10)
    assert found.pieces == pieces
    assert len(found.sizes) == len(pieces)
    assert plan.from_json(found.to_json(["a"])) == found


CONTENTS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("known", "pieces"),
    [
        # What is known becomes a piece, and what stands before it ends there.
        ([(("c", 0, None),)], [[(0, 0, None), (1, 0, None)], [(2, 0, None)], [(3, 0, None)]]),
        ([(("b", 0, None), ("c", 0, None))], [[(0, 0, None)], [(1, 0, None), (2, 0, None)]]),
        # The longest one is taken, and none of which only the beginning is there.
        ([(("a", 0, None),), (("a", 0, None), ("b", 0, None))], [[(0, 0, None), (1, 0, None)]]),
        ([(("d", 0, None), ("e", 0, None))], [[(0, 0, None), (1, 0, None), (2, 0, None)]]),
        # Rows of an origin, and what is left of it.
        ([(("a", 0, 3),)], [[(0, 0, 3)], [(0, 3, None), (1, 0, None), (2, 0, None)]]),
    ],
)
def test_what_is_known_as_a_piece_becomes_one_again(known: list[Content], pieces: list[list[Span]]):
    sizes = dict.fromkeys(known, 5)
    found = plan.cut(Reader(4, 4, 4, 4), 7, 12, CONTENTS, sizes)
    assert [list(spans) for spans in found.pieces][: len(pieces)] == pieces
    rows = [span for spans in found.pieces for span in spans]
    assert [span.origin for span in rows if span.first == 0] == [0, 1, 2, 3]
    assert plan.cut(Reader(4, 4, 4, 4), 7, 12, CONTENTS) == plan.cut(Reader(4, 4, 4, 4), 7, 12)


@pytest.mark.parametrize(
    ("many", "read_to_cut", "cut"), [(63, True, 63), (64, True, 0), (64, False, 64)]
)
def test_many_origins_are_not_read_only_to_be_cut(many: int, read_to_cut: bool, cut: int):
    reader = Reader(*[25] * many, read_to_cut=read_to_cut)
    found = plan.cut(reader, 7, 10)
    assert len(reader.cut) == cut
    assert (len(found.pieces) > many) == (cut > 0)


def test_of_many_origins_a_very_large_one_is_cut():
    reader = Reader(*[25] * 64, 6_400, 641, read_to_cut=True)
    plan.cut(reader, 7, 10)
    assert reader.cut == [64, 65]
