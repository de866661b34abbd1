"""How kernels for GPUs cut rows into pieces that a program's threads hold in registers."""

from dataclasses import dataclass

WARP = 32
LARGEST_PIECE = 4096

WASTED = 1 / 8
"""Of a row's width, that may lie beyond its end in the last piece: Triton's arrays have powers of
two as sizes."""

ELEMENTS = 4096
"""Elements that a program handles at least, by taking several rows one after the other."""

HELD = 32_768
"""Elements of all arrays together, up to which a row stays in registers until its result is
written. A multiprocessor has 65,536 registers."""

A_THREAD = 80
"""Elements of all arrays together that a thread holds, about: the more, the less a sum over threads
costs each of them."""

AT_ONCE = 8
"""Neighbouring elements that a thread loads of a piece: 16 bytes of bfloat16."""

MOST_WARPS, ALL_WARPS = 16, 32
"""Warps of a program that holds rows, with 128 registers a thread; and of one that does not. With
all warps that a multiprocessor runs in one program, rows that are read again are few enough for the
cache."""


@dataclass(frozen=True)
class Plan:
    """The pieces of rows of a width.

    Attributes:
        width: of a row.
        arrays: that a program loads of each row.
    """

    width: int
    arrays: int

    @property
    def held(self) -> bool:
        """Whether a row is loaded once; otherwise its pieces are loaded in each of two loops."""
        return self.width * self.arrays <= HELD

    @property
    def piece(self) -> int:
        """Elements of a piece: the largest power of two that wastes little."""
        size = min(LARGEST_PIECE, AT_ONCE * WARP * self.warps, _power_of_two(self.width))
        while size > WARP and -self.width % size > WASTED * self.width:
            size //= 2
        return size

    @property
    def pieces(self) -> int:
        """Of a row."""
        return -(-self.width // self.piece)

    @property
    def warps(self) -> int:
        """Warps of a program."""
        if not self.held:
            return ALL_WARPS
        return min(MOST_WARPS, _power_of_two(-(-self.width * self.arrays // (A_THREAD * WARP))))

    @property
    def rows(self) -> int:
        """That a program takes one after the other."""
        return max(1, ELEMENTS // (self.piece * self.pieces))


def _power_of_two(n: int) -> int:
    """The smallest that is n or more."""
    return 1 << (n - 1).bit_length()
