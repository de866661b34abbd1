"""What a program of a grouped product on GPUs computes at once."""

from typing import NamedTuple


class Tile(NamedTuple):
    """What a program computes at once: powers of two, 16 at least.

    Attributes:
        rows: of the result.
        columns: of the result.
        depth: of the products of one step.
    """

    rows: int
    columns: int
    depth: int
