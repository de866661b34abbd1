"""Linear classifiers of representations, and whether they carry over to other conditions."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from polycom_jax._errors import require

COST = 1.0
MAX_UPDATES = 100


@dataclass(frozen=True)
class LinearClassifier:
    """sign(w . x + b).

    Attributes:
        weights: w, float64.
        bias: b.
    """

    weights: Float[np.ndarray, " D"]
    bias: float

    def accuracy(self, x: Float[np.ndarray, "N D"], labels: Float[np.ndarray, " N"]) -> float:
        """Share of rows on the side of their labels; on the plane itself counts as wrong."""
        return float(np.mean((np.asarray(x, np.float64) @ self.weights + self.bias) * labels > 0))


def linear_svm(
    x: Float[np.ndarray, "N D"], labels: Float[np.ndarray, " N"], *, cost: float = COST
) -> LinearClassifier:
    """Minimises (|w|^2 + b^2) / 2 + cost sum_i max(0, 1 - y_i (w . x_i + b))^2.

    That is scikit-learn's LinearSVC as it is by default. Newton's method with steps halved until
    the objective falls; the objective is strictly convex and piecewise quadratic.

    Args:
        x: rows of any float dtype; the arithmetic is float64.
        labels: +1 or -1.
        cost: of errors.

    Raises:
        InputError: rows that are not finite, or labels that are all the same.
    """
    rows = np.asarray(x, np.float64)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    y = np.asarray(labels, np.float64)
    require(bool(np.isfinite(rows).all()), "A classifier needs finite rows; some are not.")
    require(bool((y > 0).any() and (y < 0).any()), "A classifier needs rows of both labels.")
    signed = rows * y[:, None]

    def objective(w: np.ndarray) -> float:
        return float(w @ w) / 2 + cost * float(np.sum(np.maximum(0, 1 - signed @ w) ** 2))

    w = np.zeros(rows.shape[1])
    value = objective(w)
    for _ in range(MAX_UPDATES):
        own = signed[signed @ w < 1]
        step = _newton(own, w, cost)
        size = 1.0
        while size > 1e-10 and objective(w + size * step) > value:
            size /= 2
        new = objective(w + size * step)
        w, gained, value = w + size * step, value - new, new
        if gained <= 1e-12 * max(1.0, abs(value)):
            break
    return LinearClassifier(w[:-1], float(w[-1]))


def _newton(own: np.ndarray, w: np.ndarray, cost: float) -> np.ndarray:
    """The step to the minimum of the quadratic that holds while no row crosses its margin."""
    hessian = np.eye(len(w)) + 2 * cost * own.T @ own
    gradient = w - 2 * cost * own.T @ (1 - own @ w)
    return -np.linalg.solve(hessian, gradient)


def cross_condition(
    x: Float[np.ndarray, "N D"],
    labels: Float[np.ndarray, " N"],
    trained_on: Iterable[Bool[np.ndarray, " N"]],
) -> float:
    """Cross-condition generalisation performance (Bernardi et al. 2020).

    The mean accuracy of classifiers, each trained on the rows of some conditions and tried on the
    rows of all others.

    Args:
        x: rows.
        labels: +1 or -1.
        trained_on: for each classifier, which rows it sees.
    """
    found = [linear_svm(x[own], labels[own]).accuracy(x[~own], labels[~own]) for own in trained_on]
    return float(np.mean(found))
