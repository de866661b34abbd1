"""How the numbers inside a model are distributed: sparsity, tails, massive activations."""

import numpy as np
from jaxtyping import Float

NEAR_ZERO = 1e-2
"""An element is near zero below this share of the array's root mean square."""
MASSIVE_SIZE = 100.0
MASSIVE_RATIO = 1000.0
"""Massive: greater than 100, and than 1,000 times the median magnitude of the hidden state (Sun et
al. 2024, arXiv 2402.17762, section 2)."""


def distribution(x: Float[np.ndarray, "*S"]) -> dict[str, float]:
    """Numbers on all elements of an array.

    Returns:
        `mean`; `rms`; `kurtosis`, the fourth central moment by the squared second, 3 for a normal
        distribution (NaN where nothing varies); `zero_share`, of elements that are exactly 0;
        `near_zero_share`, of those under `NEAR_ZERO` x rms, zeros included; `positive_share`;
        `median_magnitude`; `largest_magnitude`.
    """
    x = np.asarray(x, np.float64).reshape(-1)
    centred = x - x.mean()
    variance = float(np.mean(centred**2))
    rms = float(np.sqrt(np.mean(x**2)))
    size = np.abs(x)
    return {
        "mean": float(x.mean()),
        "rms": rms,
        "kurtosis": float(np.mean(centred**4)) / variance**2 if variance > 0 else float("nan"),
        "zero_share": float(np.mean(x == 0)),
        "near_zero_share": float(np.mean(size <= NEAR_ZERO * rms)),
        "positive_share": float(np.mean(x > 0)),
        "median_magnitude": float(np.median(size)),
        "largest_magnitude": float(size.max()),
    }


def lazy_neurons(hidden: Float[np.ndarray, "R F"]) -> dict[str, float]:
    """How few of its neurons an activation uses (Li et al. 2023, arXiv 2210.06313).

    They are idle where the output is exactly 0, as below ReLU's kink. An activation that has no
    such inputs uses all of them, however small its outputs are: see `perplexity_sparsity`.

    Returns:
        `nonzero_share` of the output's entries; `dead_share`, of columns that are 0 in every row.
    """
    used = np.asarray(hidden) != 0
    return {
        "nonzero_share": float(used.mean()),
        "dead_share": float(np.mean(~used.any(axis=0))),
    }


def massive(states: Float[np.ndarray, "N D"]) -> dict[str, float]:
    """Massive activations of the hidden states of N tokens at one place.

    Returns:
        `count` of elements that are massive; `channels` and `tokens` that have one;
        `largest_by_median`: the largest magnitude by the median one, which says how far from it a
        model is that has none.
    """
    size = np.abs(np.asarray(states, np.float64))
    median = float(np.median(size))
    found = (size > MASSIVE_SIZE) & (size > MASSIVE_RATIO * median)
    return {
        "count": float(found.sum()),
        "channels": float(found.any(axis=0).sum()),
        "tokens": float(found.any(axis=1).sum()),
        "largest_by_median": float(size.max()) / median if median > 0 else float("nan"),
    }
