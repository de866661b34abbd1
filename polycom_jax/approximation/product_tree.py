"""Monomials of several variables by trees of pairwise products, exact or not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.combine import block_diagonal, compose
from polycom_jax.approximation.network import Network, linear

Term = tuple[int, ...]
"""Indices of the factors of a product, ascending, repeated as often as the exponent says."""


@dataclass(frozen=True)
class Arithmetic:
    """How to multiply: three networks of the same depth.

    Attributes:
        product: (u, v) -> u v.
        square: u -> u^2.
        carry: u -> u, without error.
        error: bound for the error of `product` and `square`, for operands in their domain.
    """

    product: Network
    square: Network
    carry: Network
    error: float


def monomials(exponents: Sequence[Sequence[int]], arithmetic: Arithmetic) -> Network:
    """(x_1, ..., x_k) -> x_1^e_1 ... x_k^e_k for each row e of `exponents`.

    Every monomial is a balanced tree of products; those that occur twice are computed once. With
    m = max |e|, it has ceil(log2 m) layers of products. If the arithmetic maps its domain into
    itself, operands in the domain give an error of at most (|e| - 1) `arithmetic.error`: for
    |u|, |v| <= 1, errors of operands add, and each product adds its own.

    Args:
        exponents: [outputs, variables], not negative.
        arithmetic: how to multiply.

    Raises:
        InputError: no exponents, rows of different lengths, or negative ones.
    """
    expected = f"exponents={exponents!r} must be a matrix [outputs, variables] of integers >= 0."
    require(len({len(row) for row in exponents}) == 1, expected)
    table = np.array(exponents)
    require(table.dtype.kind in "iu" and bool((table >= 0).all()), expected)
    terms = [as_term(row) for row in table]
    levels = product_levels(terms)
    net = linear(_selection(levels[0], [(i,) for i in range(table.shape[1])]))
    for k in range(len(levels) - 1):
        net = compose(_level(2**k, levels[k], levels[k + 1], arithmetic), net)
    constant = [float(term == ()) for term in terms]
    net = compose(linear(_selection(terms, levels[-1]), constant), net)
    parts = (arithmetic.product, arithmetic.square, arithmetic.carry)
    return replace(net, smoothness=min(part.smoothness for part in parts))


def as_term(exponents: Sequence[int]) -> Term:
    """(2, 0, 1) -> (0, 0, 2)."""
    return tuple(int(i) for i in np.repeat(np.arange(len(exponents)), exponents))


def operands(term: Term, length: int) -> tuple[Term, ...]:
    """The two halves of a term that is longer than `length`; of another, the term itself."""
    middle = (len(term) + 1) // 2
    return (term[:middle], term[middle:]) if len(term) > length else (term,)


def product_levels(terms: Sequence[Term]) -> list[list[Term]]:
    """The terms that must stand after 0, 1, 2, ... layers of products.

    After k layers their lengths are at most 2^k.
    """
    depth = (max(1, *map(len, terms)) - 1).bit_length()
    levels = [sorted({term for term in terms if term})]
    for k in range(depth - 1, -1, -1):
        levels.append(sorted({part for term in levels[-1] for part in operands(term, 2**k)}))
    return levels[::-1]


def _level(length: int, reads: Sequence[Term], makes: Sequence[Term], how: Arithmetic) -> Network:
    """From the terms `reads`, no longer than `length`, to the terms `makes`."""
    pieces, picked = [], []
    for term in makes:
        parts = sorted(set(operands(term, length)))
        kind = how.carry if parts == [term] else how.square if len(parts) == 1 else how.product
        pieces.append(kind)
        picked += parts
    return compose(block_diagonal(*pieces), linear(_selection(picked, reads)))


def _selection(wanted: Sequence[Term], given: Sequence[Term]) -> np.ndarray:
    """The 0-1 matrix that picks the wanted terms out of the given ones; () gets a zero row."""
    place = {term: i for i, term in enumerate(given)}
    matrix = np.zeros((len(wanted), len(given)))
    for row, term in enumerate(wanted):
        if term:
            matrix[row, place[term]] = 1
    return matrix
