"""The loss as a function of size and tokens: L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022,
arXiv 2203.15556, section 3.3), by least squares over means of seeds.

For given exponents the law is linear in E, A and B, so that only two numbers are searched for; the
linear ones, none negative, come exactly (variable projection).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq, least_squares, nnls

from experiments.compare.across.cells import Cell
from experiments.compare.statistics import LEVEL
from polycom_jax._errors import InputError

LEAST_VALUES = 3
"""Different sizes, and different numbers of tokens: E and A and a cannot be told from two."""
EXPONENTS = (0.02, 2.0)
"""Bounds of a and b."""
STARTS = (0.1, 0.3, 0.8)
"""The search begins at every pair of these."""
RESAMPLES = 500
"""Of seeds, for the bootstrap."""
SEED = 0
"""Of its draws, so that a report comes out the same twice."""


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^a + B / D^b, nats a token."""

    E: float
    A: float
    a: float
    B: float
    b: float

    def loss(self, parameters: float, tokens: float | np.ndarray) -> float | np.ndarray:
        """At so many parameters and tokens."""
        return self.E + self.A * parameters**-self.a + self.B * np.power(tokens, -self.b)

    def tokens(self, parameters: float, loss: float) -> float:
        """Tokens for that loss at that size; infinity where no number of them is enough."""
        left = loss - self.E - self.A * parameters**-self.a
        return (self.B / left) ** (1 / self.b) if left > 0 and self.B > 0 else math.inf

    @property
    def at_bounds(self) -> bool:
        """Whether an exponent is at the end of what is searched, so that it is not determined."""
        return any(not 1.01 * EXPONENTS[0] < e < 0.99 * EXPONENTS[1] for e in (self.a, self.b))


PARAMETERS = tuple(field.name for field in fields(Law))


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


@dataclass(frozen=True)
class Fitted:
    """Laws of several arms, and those of resampled seeds.

    Attributes:
        laws: arm -> the fit.
        points: arm -> what it was fitted to.
        resampled: arm -> the fits of the same resamples, index by index.
    """

    laws: Mapping[str, Law]
    points: Mapping[str, Points]
    resampled: Mapping[str, Sequence[Law]]

    def residuals(self, arm: str) -> Float[np.ndarray, " P"]:
        """Measured less fitted."""
        p, law = self.points[arm], self.laws[arm]
        return p.loss - (law.E + law.A * p.parameters**-law.a + law.B * p.tokens**-law.b)


def missing(cells: Sequence[Cell]) -> str:
    """What a fit of these cells lacks, in a sentence; empty: nothing."""
    sizes = {cell.parameters for cell in cells}
    tokens = {n for cell in cells for n in cell.tokens}
    points = sum(len(cell.tokens) for cell in cells)
    lacks = [
        f"{need} {what}, there {'is' if there == 1 else 'are'} {there}"
        for need, there, what in (
            (len(PARAMETERS), points, "pairs of size and length"),
            (LEAST_VALUES, len(sizes), "sizes"),
            (LEAST_VALUES, len(tokens), "numbers of tokens"),
        )
        if there < need
    ]
    if not lacks:
        return ""
    return (
        f"No fit: L(N, D) has {len(PARAMETERS)} parameters ({', '.join(PARAMETERS)}) and needs at"
        f" least {'; '.join(lacks)}."
    )


def fit(points: Points, start: Law | None = None) -> Law:
    """The law of least squares, each point by the number of its seeds.

    Args:
        points: at least as many as the law has parameters.
        start: a law near which to look; without it, several starts.

    Raises:
        InputError: there are fewer.
    """
    if len(points.loss) < len(PARAMETERS):
        raise InputError(f"A fit needs {len(PARAMETERS)} points, came {len(points.loss)}.")
    n, d = (np.exp(np.log(x).mean()) for x in (points.parameters, points.tokens))
    root = np.sqrt(points.weight)

    def linear(exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = exponents
        columns = [np.ones_like(root), (points.parameters / n) ** -a, (points.tokens / d) ** -b]
        matrix = np.stack(columns, axis=1) * root[:, None]
        numbers, _ = nnls(matrix, root * points.loss)
        return numbers, matrix @ numbers - root * points.loss

    starts = [(start.a, start.b)] if start else [(a, b) for a in STARTS for b in STARTS]
    found = [
        least_squares(
            lambda logs: linear(np.exp(logs))[1],
            np.log(np.clip(each, *(f * e for f, e in zip((1.001, 0.999), EXPONENTS, strict=True)))),
            bounds=np.log(EXPONENTS),
        )
        for each in starts
    ]
    best = min(found, key=lambda one: one.cost)
    a, b = (float(e) for e in np.exp(best.x))
    (E, A, B), _ = linear(np.array([a, b]))
    return Law(float(E), float(A * n**a), a, float(B * d**b), b)


def fitted(cells: Sequence[Cell], arms: Sequence[str], resamples: int = RESAMPLES) -> Fitted:
    """Fits each arm to the cells that have it, and again to resampled seeds.

    Seeds are drawn anew in each folder, for all arms alike, so that pairs stay pairs and lengths of
    one trunk stay together. What a mean of n seeds departs by is stretched by sqrt(n / (n - 1)),
    since resampling n seeds shows a spread too small by that.
    """
    own = {arm: [cell for cell in cells if arm in cell.numbered] for arm in arms}
    points = {arm: _points(own[arm], arm) for arm in arms}
    laws = {arm: fit(points[arm]) for arm in arms}
    rng = np.random.default_rng(SEED)
    resampled: dict[str, list[Law]] = {arm: [] for arm in arms}
    common = {cell.name: _common(cell, arms) for cell in cells if {*arms} & {*cell.numbered}}
    for _ in range(resamples):
        drawn = {name: rng.choice(seeds, len(seeds)) for name, seeds in common.items()}
        for arm in arms:
            shifts = [_shift(cell, arm, common[cell.name], drawn[cell.name]) for cell in own[arm]]
            moved = replace(points[arm], loss=points[arm].loss + np.concatenate(shifts))
            resampled[arm].append(fit(moved, laws[arm]))
    return Fitted(laws, points, resampled)


def _common(cell: Cell, arms: Sequence[str]) -> list[int]:
    return cell.seeds(*(arm for arm in arms if arm in cell.numbered))


def _shift(cell: Cell, arm: str, seeds: Sequence[int], drawn: np.ndarray) -> np.ndarray:
    """What drawing these seeds changes in the means of a cell's lengths."""
    stretch = math.sqrt(len(seeds) / max(1, len(seeds) - 1))
    return stretch * (cell.losses(arm, drawn.tolist()).mean(0) - cell.losses(arm, seeds).mean(0))


def _points(cells: Sequence[Cell], arm: str) -> Points:
    """Means over seeds of every cell and length."""
    parameters, tokens, losses, weights = [], [], [], []
    for cell in cells:
        seeds = cell.seeds(arm)
        parameters += [cell.arms[arm].parameters] * len(cell.tokens)
        tokens += cell.tokens
        losses += cell.losses(arm, seeds).mean(0).tolist()
        weights += [len(seeds)] * len(cell.tokens)
    return Points(*(np.array(x, np.float64) for x in (parameters, tokens, losses, weights)))


@dataclass(frozen=True)
class Band:
    """A number of a fit, and its interval by the bootstrap.

    Attributes:
        value: of the fit.
        low: LEVEL / 2 quantile over resampled fits.
        high: 1 - LEVEL / 2 quantile.
    """

    value: float
    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        """Whether zero lies in it."""
        return self.low <= 0 <= self.high


def band(value: float, resampled: Sequence[float]) -> Band:
    """The band of a number; of infinite ones, the quantile is infinite where they reach it."""
    low, high = np.quantile(
        np.asarray(resampled, np.float64), (LEVEL / 2, 1 - LEVEL / 2), method="inverted_cdf"
    )
    return Band(value, float(low), float(high))


def difference(law: Law, reference: Law, parameters: float, tokens: float) -> float:
    """Loss of one less loss of the other."""
    return float(law.loss(parameters, tokens) - reference.loss(parameters, tokens))


def meeting(law: Law, reference: Law, parameters: float, low: float, high: float) -> float | None:
    """Tokens between two numbers at which the laws are equal; None where they are not."""

    def at(log: float) -> float:
        return difference(law, reference, parameters, math.exp(log))

    ends = math.log(low), math.log(high)
    if at(ends[0]) * at(ends[1]) >= 0:
        return None
    return math.exp(float(brentq(at, *ends)))
