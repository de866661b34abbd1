"""The geometry of a representation of P points: kernels, alignment, parallelism, dimension.

As Alleman, Lindsey and Fusi use them (ICLR 2024, arXiv 2401.13558). All is float64 on the host.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from polycom_jax._errors import require

Kernel = Float[np.ndarray, "P P"]


def centred_kernel(x: Float[np.ndarray, "P D"]) -> Kernel:
    """H X X^T H, H = I - 1 1^T / P: inner products of points from which their mean is taken."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0)
    return x @ x.T


def kernel_alignment(a: Kernel, b: Kernel) -> float:
    """<A, B> / (|A| |B|), Frobenius: 1 where they are equal but for a factor, NaN where one is 0.

    Of centred kernels it is centred kernel alignment, which is linear CKA (Cortes et al. 2012).
    """
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.sum(a * b)) / scale if scale > 0 else math.nan


def largest_alignment(own: float, between: float) -> float:
    """The greatest alignment with one kernel that a kernel can have whose alignment with another is
    `own`, theirs with each other being `between`: c t + sqrt(1 - c^2) sqrt(1 - t^2)."""
    return between * own + math.sqrt(1 - between**2) * math.sqrt(max(0.0, 1 - own**2))


def orthogonal_alignments(first: float, second: float, between: float) -> tuple[float, float]:
    """G^(-1/2) (first, second), G = [[1, c], [c, 1]], c = `between`: as if the two were orthogonal.

    Alignments with two kernels that are aligned with each other depend on each other. These are
    with the two orthonormal kernels nearest to them, so whatever c is, they lie within the unit
    circle, and on it where the representation's kernel is a mixture of the two.

    Raises:
        InputError: the two are the same, c = 1.
    """
    require(
        -1 < between < 1,
        f"between={between:.4g}: kernels that are equal but for a factor span no plane.",
    )
    sum_, difference = (first + second) / math.sqrt(1 + between), (first - second)
    difference /= math.sqrt(1 - between)
    return (sum_ + difference) / 2, (sum_ - difference) / 2


def participation_ratio(x: Float[np.ndarray, "P D"]) -> float:
    """(sum l_i)^2 / sum l_i^2, l_i the eigenvalues of the covariance: a dimension, 1 to P - 1.

    NaN where all points are the same.
    """
    k = centred_kernel(x)
    squares = float(np.sum(k * k))
    return float(np.trace(k)) ** 2 / squares if squares > 0 else math.nan


def pairings(
    labels: Float[np.ndarray, " P"], others: Float[np.ndarray, "P o"]
) -> list[list[tuple[int, int]]]:
    """Ways to pair each point of label 1 with one of label -1.

    All of them up to six points. Of more, those in which the two points of a pair differ, besides
    the label, in the signs of one set of columns of `others`, the same for all pairs: points are
    the corners of a cube there, and pairs its edges or diagonals.
    """
    up, down = np.flatnonzero(labels > 0), np.flatnonzero(labels < 0)
    if len(labels) <= 6:
        return [
            [(int(i), int(j)) for i, j in zip(up, order, strict=True)]
            for order in itertools.permutations(down)
        ]
    signs = np.concatenate([labels[:, None], others], axis=1)
    place = {tuple(row): i for i, row in enumerate(signs)}
    flips = [signs[up[0]] * signs[j] for j in down]
    return [[(int(i), place[tuple(signs[i] * flip)]) for i in up] for flip in flips]


def parallelism(
    hidden: Float[np.ndarray, "P D"], pairs: Iterable[Sequence[tuple[int, int]]]
) -> float:
    """Parallelism score: the greatest, over pairings, mean cosine of two pairs' differences.

    1: one direction leads from any point to that which it is paired with (Bernardi et al. 2020).
    """
    hidden, scores = np.asarray(hidden, np.float64), []
    for pairing in pairs:
        up, down = np.array(pairing).T
        d = hidden[up] - hidden[down]
        size = np.linalg.norm(d, axis=1, keepdims=True)
        d = np.divide(d, size, out=np.zeros_like(d), where=size > 0)
        count = len(d)
        scores.append((np.sum(d.sum(axis=0) ** 2) - np.sum(d * d)) / (count * (count - 1)))
    return float(max(scores))
