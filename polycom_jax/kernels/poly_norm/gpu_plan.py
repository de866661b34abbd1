"""How kernels for GPUs cut rows into pieces that a program's threads hold in registers."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from polycom_jax.kernels.poly_norm.form import Form

WARP = 32
LARGEST_PIECE = 4096
MOST_WARPS = 16

WASTED = 1 / 8
"""Of a row's width, that may lie beyond its end in the last piece: Triton's arrays have powers of
two as sizes."""

ELEMENTS = 4096
"""Elements that a program handles at least, by taking several rows one after the other."""

HELD = 16_384
"""Elements of each array, up to which a row stays in registers from its sums to its result."""


@dataclass(frozen=True)
class Plan:
    """The pieces of rows of a width.

    Attributes:
        width: of a row.
        held: whether a row is read once and kept in registers; otherwise its pieces are read twice,
            in two loops.
    """

    width: int
    held: bool

    @classmethod
    def of(cls, width: int, arrays: int) -> "Plan":
        """For rows of which a program holds so many arrays at once."""
        return cls(width, width * arrays <= HELD * 2)

    @property
    def piece(self) -> int:
        """Elements of a piece: the largest power of two that wastes little."""
        size = min(LARGEST_PIECE, 1 << (self.width - 1).bit_length())
        while size > WARP and -self.width % size > WASTED * self.width:
            size //= 2
        return size

    @property
    def warps(self) -> int:
        """Warps of a program: 8 elements of a piece a thread."""
        wanted = max(1, self.piece // (8 * WARP))
        return min(MOST_WARPS, wanted)

    @property
    def pieces(self) -> int:
        """Of a row."""
        return -(-self.width // self.piece)

    @property
    def rows(self) -> int:
        """That a program takes one after the other."""
        return max(1, ELEMENTS // (self.piece * self.pieces))
