"""Linear classifiers against SciPy's minimiser, and generalisation on shapes that are known."""

import numpy as np
import pytest
from scipy.optimize import minimize

from polycom_jax import InputError
from polycom_jax.analysis.decoding import cross_condition, linear_svm

RNG = np.random.default_rng(0)


def objective(wb: np.ndarray, x: np.ndarray, y: np.ndarray, cost: float) -> float:
    """As the docstring has it, in a loop over rows."""
    rows = zip(x, y, strict=True)
    loss = sum(max(0.0, 1 - label * (row @ wb[:-1] + wb[-1])) ** 2 for row, label in rows)
    return float(wb @ wb) / 2 + cost * loss


@pytest.mark.parametrize("cost", [0.1, 1.0, 50.0])
def test_the_svm_is_at_the_minimum_of_its_objective(cost: float):
    x = RNG.standard_normal((40, 3))
    y = np.sign(x[:, 0] + 0.5 * RNG.standard_normal(40))
    found = linear_svm(x, y, cost=cost)
    own = np.append(found.weights, found.bias)
    best = minimize(objective, np.zeros(4), args=(x, y, cost), method="BFGS", tol=1e-10)
    assert objective(own, x, y, cost) <= best.fun * (1 + 1e-8)
    np.testing.assert_allclose(own, best.x, rtol=1e-3, atol=1e-4)


def test_a_classifier_is_scored_by_the_share_on_the_right_side():
    x = np.array([[2.0], [1.0], [-1.0], [-2.0]])
    found = linear_svm(x, np.array([1.0, 1, -1, -1]))
    assert found.accuracy(x, np.array([1.0, 1, -1, -1])) == 1.0
    assert found.accuracy(x, np.array([1.0, -1, -1, -1])) == 0.75


def test_a_square_generalises_across_conditions_and_a_tetrahedron_does_not():
    square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    label, other = square.T
    splits = [other > 0, other < 0]
    assert cross_condition(square, label, splits) == 1.0
    assert cross_condition(square, label * other, splits) == 0.0  # XOR turns round
    simplex = np.eye(4)
    assert cross_condition(simplex, label, splits) < 1.0


def test_refused_are_rows_that_are_not_finite_and_labels_that_are_all_the_same():
    x = np.ones((4, 2))
    with pytest.raises(InputError, match="finite"):
        linear_svm(x * np.nan, np.array([1.0, 1, -1, -1]))
    with pytest.raises(InputError, match="both labels"):
        linear_svm(x, np.ones(4))
