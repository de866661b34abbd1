"""Which of the three operations on rows a kernel computes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One of PolyNorm, PolyReLUNorm and gated PolyNorm, and its constants.

    Attributes:
        order: of the polynomial.
        eps: under each root.
        relu: whether it takes relu(x).
        gated: whether it is multiplied by a second array.
    """

    order: int
    eps: float
    relu: bool = False
    gated: bool = False
