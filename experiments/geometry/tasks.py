"""Binary classification of few points, with a known geometry of inputs and of labels.

The three families are those of Alleman, Lindsey and Fusi (ICLR 2024, arXiv 2401.13558); sizes are
of the first author's experiment files.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import hadamard

PATTERN_DIM = 200
FACTOR_DIM = 40
"""Input dimensions for each of the two bits of `xor`."""
KERNEL_DIM = 100
KERNEL_POINTS = 32


@dataclass(frozen=True)
class Points:
    """P noise-free inputs with k labels each.

    Attributes:
        inputs: one row a point.
        labels: +1 or -1; each column is balanced.
        others: balanced dichotomies of the points that are orthogonal to all labels: what inputs
            hold and labels do not ask for.
    """

    inputs: Float[np.ndarray, "P D"]
    labels: Float[np.ndarray, "P k"]
    others: Float[np.ndarray, "P o"]


@dataclass(frozen=True)
class Task:
    """One task; each seed draws points of its own.

    Attributes:
        family: a name of `FAMILIES`: how its points are made, and networks for it trained.
        kind: what it is summarised with: a name of `KINDS`.
        name: of the task.
        labels: k, how many labels a point has.
        noise: standard deviation of the noise on each input in training.
        test_noise: the same where classifiers are tried on hidden layers.
        draw: makes the points.
        separability: of XOR's; None of other tasks.
    """

    family: str
    kind: str
    name: str
    labels: int
    noise: float
    test_noise: float
    draw: Callable[[np.random.Generator], Points]
    separability: float | None = None

    def points(self, seed: int) -> Points:
        """The points of a seed: tasks that differ in noise alone have the same ones."""
        return self.draw(np.random.default_rng(seed))


def dichotomies(points: int) -> Int[np.ndarray, "P P-1"]:
    """Columns of Sylvester's Hadamard matrix but the first: balanced, orthogonal to each other."""
    return hadamard(points, dtype=int)[:, 1:]


def _points(inputs: np.ndarray, columns: Sequence[int]) -> Points:
    """The points with these columns of `dichotomies` as labels."""
    table = dichotomies(len(inputs)).astype(np.float64)
    rest = [i for i in range(table.shape[1]) if i not in columns]
    return Points(inputs, table[:, list(columns)], table[:, rest])


def patterns(rng: np.random.Generator, *, columns: Sequence[int]) -> Points:
    """Four points, standard normal in each of `PATTERN_DIM` dimensions."""
    return _points(rng.standard_normal((4, PATTERN_DIM)), columns)


def xor(rng: np.random.Generator, *, separability: float) -> Points:
    """x = b_1 u_1 + b_2 u_2 + separability b_1 b_2 v; the label is b_1 b_2, b_i = -1 or 1.

    u_1 and u_2 are random unit vectors, each in `FACTOR_DIM` dimensions of its own; v is a random
    unit vector that is orthogonal to both. 0 is XOR, and no plane separates the classes; the
    greater it is, the farther they lie apart.
    """
    first, second = (_unit(rng.standard_normal(FACTOR_DIM)) for _ in range(2))
    basis = np.zeros((2, 2 * FACTOR_DIM))
    basis[0, :FACTOR_DIM], basis[1, FACTOR_DIM:] = first, second
    v = rng.standard_normal(2 * FACTOR_DIM)
    v = _unit(v - basis.T @ (basis @ v))
    bits = dichotomies(4)
    return _points(bits @ np.stack([*basis, separability * v]), (2,))


def kernel(rng: np.random.Generator, *, labels: int, signal: float, rank: int) -> Points:
    """`KERNEL_POINTS` points whose kernel has a given alignment with that of their labels.

    K_x ~ c K_y / |K_y| + sqrt(1 - c^2) Q / |Q|, c = sqrt(k signal / (P - 1)), with Q the projection
    on a random subspace of this rank, orthogonal to labels and to the constant. Signal 0: inputs
    say nothing of labels by any plane; 1 and full rank: points as far apart as P points can be. A
    random rotation embeds them in `KERNEL_DIM` dimensions, scaled to mean square 1 in each.
    """
    table = dichotomies(KERNEL_POINTS) / math.sqrt(KERNEL_POINTS)
    own, rest = table[:, :labels], table[:, labels:]
    turn = _orthonormal(rng, rest.shape[1], rank)
    c = math.sqrt(labels * signal / (KERNEL_POINTS - 1))
    axes = np.concatenate([own, rest @ turn], axis=1)
    squares = np.repeat([c / math.sqrt(labels), math.sqrt((1 - c**2) / rank)], (labels, rank))
    low = axes * np.sqrt(squares)
    inputs = low @ _orthonormal(rng, KERNEL_DIM, low.shape[1]).T
    return _points(inputs / math.sqrt(np.mean(inputs**2)), range(labels))


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Columns of a random rotation."""
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    return q * np.sign(np.diag(r))


def pattern_tasks() -> list[Task]:
    """XOR of the two bits of four patterns, and the bits themselves."""
    made = {"patterns, XOR": (2,), "patterns, two bits": (0, 1)}
    return [
        Task("patterns", "patterns", name, len(own), 1.0, 1.0, partial(patterns, columns=own))
        for name, own in made.items()
    ]


def xor_tasks(separabilities: Iterable[float], noises: Iterable[float]) -> list[Task]:
    """Each separability with each noise."""
    return [
        Task(
            "xor",
            "separable XOR" if s > 0 else "XOR",
            f"xor {s:g}, noise {noise:g}",
            1,
            noise,
            0.3,
            partial(xor, separability=s),
            separability=s,
        )
        for s, noise in itertools.product(separabilities, noises)
    ]


def kernel_tasks() -> list[Task]:
    """One and five labels, three signals, low and full rank."""
    return [
        Task(
            "kernel",
            "kernel, signal" if signal > 0 else "kernel, no signal",
            f"kernel, {k} label{'s' * (k > 1)}, signal {signal:g}, rank {rank}",
            k,
            1.0,
            1.0,
            partial(kernel, labels=k, signal=signal, rank=rank),
        )
        for k in (1, 5)
        for signal in (0.0, 0.5, 1.0)
        for rank in (5, KERNEL_POINTS - 1 - k)
    ]


FAMILIES: Mapping[str, str] = {
    "patterns": "four random patterns: XOR of two bits, or both bits",
    "xor": "XOR, made separable by steps",
    "kernel": "32 points whose input kernel is drawn at a given alignment with the labels'",
}
"""Family -> what it is."""

KINDS: Mapping[str, str] = {
    "patterns": "four random patterns; labels are XOR of two bits, or both bits",
    "XOR": "classes that no plane separates, of four points",
    "separable XOR": "the same four points, the classes moved apart along a third direction",
    "kernel, no signal": "32 points, labels orthogonal to all that is linear in the inputs",
    "kernel, signal": "32 points, input and label kernels aligned",
}
"""What tasks are summarised in -> what they have in common."""
