"""The loss as a function of size and tokens, by least squares over means of seeds.

L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022, arXiv 2203.15556, section 3.3); where sizes
are too few for that, L(N, D) = E_N + B / D^b, with a number for each size. For given exponents both
are linear in all else, so that one or two numbers are searched for; the linear ones, none negative,
come exactly (variable projection).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares, nnls, root_scalar

from polycom_jax._errors import InputError

EXPONENTS = (0.02, 2.0)
"""Bounds of a and b."""
STARTS = (0.1, 0.3, 0.8)
"""The search begins at each of these, for every exponent."""
LEAST_TOKENS = 3
"""Different D that a fit needs: a limit, a factor and an exponent cannot be told from two."""


@dataclass(frozen=True)
class Law(ABC):
    """L(N, D) = floor(N) + B / D^b, nats a token."""

    B: float
    b: float

    @abstractmethod
    def floor(self, parameters: float) -> float:
        """The loss at that size after endless training."""

    @property
    @abstractmethod
    def numbers(self) -> dict[str, float]:
        """All of its numbers by name."""

    @property
    def exponents(self) -> tuple[float, ...]:
        """Those of its numbers that are searched for."""
        return tuple(self.numbers[name] for name in self._searched)

    @property
    def _searched(self) -> list[str]:
        return [name for name in self.numbers if name in ("a", "b")]

    def loss(self, parameters: float, tokens: float | np.ndarray) -> float | np.ndarray:
        """At so many parameters and tokens."""
        return self.floor(parameters) + self.B * np.power(tokens, -self.b)

    def tokens(self, parameters: float, loss: float) -> float:
        """Tokens for that loss at that size; infinity where no number of them is enough."""
        left = loss - self.floor(parameters)
        return (self.B / left) ** (1 / self.b) if left > 0 and self.B > 0 else math.inf

    @property
    def at_bounds(self) -> bool:
        """Whether an exponent is not determined: at an end of what is searched, or its factor 0."""
        low, high = EXPONENTS
        inside = all(1.01 * low < exponent < 0.99 * high for exponent in self.exponents)
        return not (inside and all(self.numbers[name.upper()] for name in self._searched))


@dataclass(frozen=True)
class PowerLaw(Law):
    """floor(N) = E + A / N^a."""

    E: float
    A: float
    a: float

    def floor(self, parameters: float) -> float:
        """E + A / N^a."""
        return self.E + self.A * parameters**-self.a

    @property
    def numbers(self) -> dict[str, float]:
        """In the order of the formula."""
        return {"E": self.E, "A": self.A, "a": self.a, "B": self.B, "b": self.b}


@dataclass(frozen=True)
class SizeLaw(Law):
    """floor(N) = E_N, for the sizes that were measured.

    Attributes:
        floors: (N, E_N), ascending.
    """

    floors: tuple[tuple[float, float], ...]

    def floor(self, parameters: float) -> float:
        """E_N.

        Raises:
            KeyError: of a size that was not measured.
        """
        return dict(self.floors)[parameters]

    @property
    def numbers(self) -> dict[str, float]:
        """E of each size, then B and b."""
        return {**{f"E at {n:,.0f}": e for n, e in self.floors}, "B": self.B, "b": self.b}


@dataclass(frozen=True)
class Points:
    """What a law is fitted to: one point a size and length.

    Attributes:
        parameters: N of each.
        tokens: D of each.
        loss: mean over seeds.
        weight: seeds, of which the mean is.
    """

    parameters: Float[np.ndarray, " P"]
    tokens: Float[np.ndarray, " P"]
    loss: Float[np.ndarray, " P"]
    weight: Float[np.ndarray, " P"]

    @property
    def sizes(self) -> list[float]:
        """Different N, ascending."""
        return sorted(set(self.parameters.tolist()))

    def __len__(self) -> int:
        """How many."""
        return len(self.loss)


@dataclass(frozen=True)
class Form:
    """A form that laws have.

    Attributes:
        text: the formula.
        across_sizes: it says something of sizes that were not measured.
        least_sizes: different N that it needs.
        names: its parameters, for so many sizes.
        spare: points that it needs beyond its parameters.
        exponents: how many.
        columns: (points, exponents) -> matrix of what is linear, each column of order 1.
        law: (points, exponents, linear numbers) -> the law.
    """

    text: str
    across_sizes: bool
    least_sizes: int
    names: Callable[[int], tuple[str, ...]]
    spare: int
    exponents: int
    columns: Callable[[Points, np.ndarray], np.ndarray]
    law: Callable[[Points, np.ndarray, np.ndarray], Law]

    def lacks(self, points: Points) -> str:
        """What these points lack, in a sentence; empty: nothing."""
        names = self.names(max(1, len(points.sizes)))
        needs = (
            (len(names) + self.spare, len(points), "pairs of size and length"),
            (self.least_sizes, len(points.sizes), "sizes"),
            (LEAST_TOKENS, len(set(points.tokens.tolist())), "numbers of tokens"),
        )
        lacks = [
            f"{need} {what}, there {'is' if there == 1 else 'are'} {there}"
            for need, there, what in needs
            if there < need
        ]
        if not lacks:
            return ""
        return (
            f"No fit: {self.text} has {len(names)} parameters ({', '.join(names)}) and needs at"
            f" least {'; '.join(lacks)}."
        )


def _centre(numbers: np.ndarray) -> float:
    return float(np.exp(np.log(numbers).mean()))


def _power(numbers: np.ndarray, exponent: float) -> np.ndarray:
    return (numbers / _centre(numbers)) ** -exponent


def _power_columns(points: Points, exponents: np.ndarray) -> np.ndarray:
    a, b = exponents
    ones = np.ones(len(points))
    return np.stack([ones, _power(points.parameters, a), _power(points.tokens, b)], axis=1)


def _power_law(points: Points, exponents: np.ndarray, linear: np.ndarray) -> PowerLaw:
    (a, b), (E, A, B) = exponents.tolist(), linear.tolist()
    n, d = _centre(points.parameters), _centre(points.tokens)
    return PowerLaw(E=E, A=A * n**a, a=a, B=B * d**b, b=b)


def _size_columns(points: Points, exponents: np.ndarray) -> np.ndarray:
    own = [points.parameters == size for size in points.sizes]
    return np.stack([*own, _power(points.tokens, exponents[0])], axis=1).astype(np.float64)


def _size_law(points: Points, exponents: np.ndarray, linear: np.ndarray) -> SizeLaw:
    (b,), (*floors, B) = exponents.tolist(), linear.tolist()
    d = _centre(points.tokens)
    return SizeLaw(B=B * d**b, b=b, floors=tuple(zip(points.sizes, floors, strict=True)))


FORMS = (
    Form(
        "L(N, D) = E + A / N^a + B / D^b", True, 3, lambda sizes: ("E", "A", "a", "B", "b"), 0,
        2, _power_columns, _power_law,
    ),
    Form(
        "L(N, D) = E_N + B / D^b", False, 1,
        lambda sizes: (*(f"E_{place + 1}" for place in range(sizes)), "B", "b"), 1,
        1, _size_columns, _size_law,
    ),
)  # fmt: skip
"""The first one that nothing is missing for is taken."""


def fit(points: Points, form: Form = FORMS[0], start: Law | None = None) -> Law:
    """The law of least squares, each point by the number of its seeds.

    Args:
        points: at least as many as the form needs.
        form: of the law.
        start: a law near which to look; without it, several starts.

    Raises:
        InputError: the points are too few.
    """
    if lacks := form.lacks(points):
        raise InputError(lacks)
    root = np.sqrt(points.weight)

    def linear(exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix = form.columns(points, exponents) * root[:, None]
        numbers, _ = nnls(matrix, root * points.loss)
        return numbers, matrix @ numbers - root * points.loss

    begin = np.array([start.exponents] if start else [*product(STARTS, repeat=form.exponents)])
    inside = np.clip(begin, 1.001 * EXPONENTS[0], 0.999 * EXPONENTS[1])
    found = [
        least_squares(lambda logs: linear(np.exp(logs))[1], np.log(each), bounds=np.log(EXPONENTS))
        for each in inside
    ]
    exponents = np.exp(min(found, key=lambda one: one.cost).x)
    return form.law(points, exponents, linear(exponents)[0])


def difference(law: Law, reference: Law, parameters: float, tokens: float) -> float:
    """Loss of one less loss of the other."""
    return float(law.loss(parameters, tokens) - reference.loss(parameters, tokens))


def ratio(law: Law, reference: Law, parameters: float, tokens: float) -> float:
    """Tokens at which a law has the loss that the reference has at `tokens`, by these."""
    return law.tokens(parameters, float(reference.loss(parameters, tokens))) / tokens


def meetings(
    law: Law, reference: Law, parameters: float, low: float, high: float
) -> tuple[float, ...]:
    """All numbers of tokens between two, ascending, at which the laws are equal: two at most.

    Their difference B D^-b - B' D^-b' + const rises and falls once: it turns where
    D^(b - b') = B b / (B' b').
    """

    def at(log: float) -> float:
        return difference(law, reference, parameters, math.exp(log))

    ends = [math.log(low), math.log(high)]
    if min(law.B, reference.B) > 0 and law.b != reference.b:
        slopes = law.B * law.b / (reference.B * reference.b)
        turn = math.log(slopes) / (law.b - reference.b)
        ends[1:1] = [turn] if ends[0] < turn < ends[1] else []
    parts = [part for part in pairwise(ends) if at(part[0]) * at(part[1]) < 0]
    return tuple(math.exp(root_scalar(at, bracket=part).root) for part in parts)


def residuals(law: Law, points: Points) -> Float[np.ndarray, " P"]:
    """Measured less fitted."""
    fitted = [law.loss(n, d) for n, d in zip(points.parameters, points.tokens, strict=True)]
    return points.loss - np.array(fitted, np.float64)
