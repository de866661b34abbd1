"""Geometry of representations against plain loops, and on shapes whose answer is known."""

import itertools
import math

import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.analysis.geometry import (
    centred_kernel,
    kernel_alignment,
    largest_alignment,
    orthogonal_alignments,
    pairings,
    parallelism,
    participation_ratio,
)

RNG = np.random.default_rng(0)
SQUARE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
FIRST, SECOND = SQUARE.T
XOR = FIRST * SECOND


def plain_alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Centred kernel alignment as sums over pairs of points."""
    n = len(x)
    x, y = x - sum(x) / n, y - sum(y) / n
    dots = [
        (float(x[i] @ x[j]), float(y[i] @ y[j])) for i, j in itertools.product(range(n), repeat=2)
    ]
    between = sum(a * b for a, b in dots)
    return between / math.sqrt(sum(a * a for a, _ in dots) * sum(b * b for _, b in dots))


def test_alignment_is_that_of_a_plain_loop_and_sees_no_rotation_scale_or_shift():
    x, y = RNG.standard_normal((7, 4)), RNG.standard_normal((7, 3))
    found = kernel_alignment(centred_kernel(x), centred_kernel(y))
    assert found == pytest.approx(plain_alignment(x, y), rel=1e-12)
    turn = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    moved = centred_kernel(3 * x.astype(np.float32).astype(np.float64) @ turn + 5)
    same = centred_kernel(x.astype(np.float32))
    assert kernel_alignment(moved, same) == pytest.approx(1.0, rel=1e-12)
    assert math.isnan(kernel_alignment(np.zeros((7, 7)), same))


def test_no_mixture_of_two_kernels_lies_beyond_the_bound_or_off_the_circle():
    x, y = RNG.standard_normal((9, 4)), RNG.standard_normal((9, 2))
    inputs, labels = centred_kernel(x), centred_kernel(y)
    c = kernel_alignment(inputs, labels)
    for share in (0.0, 0.3, 0.8, 1.0):
        mixed = share * inputs / np.linalg.norm(inputs) + (1 - share) * labels / np.linalg.norm(
            labels
        )
        a, b = kernel_alignment(mixed, inputs), kernel_alignment(mixed, labels)
        assert a == pytest.approx(largest_alignment(b, c), rel=1e-9)
        assert math.hypot(*orthogonal_alignments(a, b, c)) == pytest.approx(1.0, rel=1e-9)
    other = centred_kernel(RNG.standard_normal((9, 8)))
    a, b = kernel_alignment(other, inputs), kernel_alignment(other, labels)
    assert a < largest_alignment(b, c)
    assert math.hypot(*orthogonal_alignments(a, b, c)) < 1


def test_orthogonal_alignments_are_by_the_inverse_root_of_the_gram_matrix():
    c = 0.4
    values, vectors = np.linalg.eigh(np.array([[1, c], [c, 1]]))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    assert orthogonal_alignments(0.7, 0.5, c) == pytest.approx(root @ [0.7, 0.5], rel=1e-12)
    assert orthogonal_alignments(0.7, 0.5, 0.0) == pytest.approx((0.7, 0.5), rel=1e-12)
    with pytest.raises(InputError, match="span no plane"):
        orthogonal_alignments(1.0, 1.0, 1.0)


def test_participation_ratio_counts_dimensions_of_equal_variance():
    assert participation_ratio(SQUARE) == pytest.approx(2.0, rel=1e-12)
    x = RNG.standard_normal((6, 3))
    variances = np.linalg.eigvalsh(np.cov(x.T))
    expected = variances.sum() ** 2 / (variances**2).sum()
    assert participation_ratio(x) == pytest.approx(expected, rel=1e-10)
    assert math.isnan(participation_ratio(np.ones((4, 3))))


def test_parallelism_is_one_for_sides_of_a_square_minus_one_for_xor_and_zero_where_all_differ():
    assert parallelism(SQUARE, pairings(FIRST, np.stack([SECOND, XOR], 1))) == pytest.approx(1.0)
    assert parallelism(SQUARE, pairings(XOR, SQUARE)) == pytest.approx(-1.0)
    tetrahedron = np.concatenate([SQUARE, XOR[:, None]], axis=1)
    assert parallelism(tetrahedron, pairings(FIRST, SQUARE[:, 1:])) == pytest.approx(0.0, abs=1e-12)


def test_parallelism_is_that_of_a_plain_loop_over_pairings():
    x = RNG.standard_normal((4, 5))
    best = -1.0
    for order in ((2, 3), (3, 2)):
        d = [x[0] - x[order[0]], x[1] - x[order[1]]]
        best = max(best, float(d[0] @ d[1] / (np.linalg.norm(d[0]) * np.linalg.norm(d[1]))))
    assert parallelism(x, pairings(FIRST, SQUARE[:, 1:])) == pytest.approx(best, rel=1e-12)


def test_pairs_of_a_cube_s_corners_are_its_edges_and_diagonals():
    corners = np.array(list(itertools.product((1.0, -1.0), repeat=3)))
    a, b, c = corners.T
    found = pairings(a, np.stack([b, c, a * b, a * c, b * c, a * b * c], axis=1))
    assert len(found) == 4
    for pairing in found:
        assert {i for pair in pairing for i in pair} == set(range(8))
        assert len({tuple(corners[i] * corners[j]) for i, j in pairing}) == 1
    assert parallelism(corners, found) == pytest.approx(1.0)
