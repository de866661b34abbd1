"""Which learning rate is taken, and which fits count as failed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]

FAILED = 0.5
"""An L2 error above which a fit counts as failed, in units of the target's deviation."""

RULE = (
    "Of the rates tried, the one was taken at which the fewest fits failed; among rates with as"
    " many failures, the one with the lowest geometric mean of errors."
)


def failures(errors: Sequence[Mapping[str, float]]) -> int:
    """How many of these fits failed; one that diverged has, too."""
    return sum(not error["l2"] <= FAILED for error in errors)


def tried(rate: float, errors: Sequence[Mapping[str, float]], loss: str, seeds: int) -> Row:
    """What is kept of a learning rate: the geometric mean of its fits' errors, and failures."""
    mean = float(np.exp(np.log([error[loss] for error in errors]).mean()))
    return {"learning_rate": rate, loss: mean, "failed": failures(errors), "seeds": seeds}


def best(rows: Sequence[Row], loss: str) -> int:
    """Index of the rate that is taken, by `RULE`.

    A geometric mean alone hides failures: three very good fits and one that failed have a lower one
    than four good fits.
    """
    return min(range(len(rows)), key=lambda i: (rows[i]["failed"], rows[i][loss]))
