"""The activation as a trained model uses it: output over input, where inputs really are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polycom_jax.params import Params
from polycom_jax.table import Activation

TAIL = 1e-3
"""Share of inputs that are left out at either end of the range."""
BINS = 64


@dataclass(frozen=True)
class Curve:
    """Output over input.

    Attributes:
        x: middles of bins of equal width, from the `TAIL` to the 1 - `TAIL` quantile of inputs.
        mean: of the output in each bin; NaN where it holds no input.
        low: a tenth of the bin's outputs lie below.
        high: a tenth lie above.
        density: share of all inputs in each bin.
    """

    x: Float[np.ndarray, " P"]
    mean: Float[np.ndarray, " P"]
    low: Float[np.ndarray, " P"]
    high: Float[np.ndarray, " P"]
    density: Float[np.ndarray, " P"]


def response(
    activation: Activation, params: Params, x: Float[Array, "N F"], *, bins: int = BINS
) -> Curve:
    """The activation applied to real rows of inputs, binned by input.

    PolyNorm's output at an element depends on its whole row, so it is a band, not a line: `low` and
    `high` show how much. A gated activation is applied to `x` as its gate, the other factor being
    one.

    Args:
        activation: from `get_activation`.
        params: its parameters, those of one layer.
        x: rows of what it is applied to, such as `LayerView.inputs`; any floating dtype.
        bins: of equal width.

    Returns:
        float64 arrays of length `bins`.

    Raises:
        InputError: parameters other than the activation's, or inputs that are not floating.
    """
    x = jnp.asarray(x)
    y = np.asarray(
        activation.apply(params, *([x, jnp.ones_like(x)][: 1 + activation.gated])), np.float64
    )
    flat_x, flat_y = np.asarray(x, np.float64).reshape(-1), y.reshape(-1)
    ends = np.quantile(flat_x, [TAIL, 1 - TAIL])
    edges = np.linspace(ends[0], max(ends[1], np.nextafter(ends[0], np.inf)), bins + 1)
    place = np.searchsorted(edges, flat_x, side="right") - 1
    parts = [flat_y[place == i] for i in range(bins)]

    def each(f: Callable[..., Any], *args: float) -> Float[np.ndarray, " P"]:
        return np.array([f(part, *args) if part.size else np.nan for part in parts])

    return Curve(
        x=(edges[:-1] + edges[1:]) / 2,
        mean=each(np.mean),
        low=each(np.quantile, 0.1),
        high=each(np.quantile, 0.9),
        density=np.array([part.size for part in parts]) / flat_x.size,
    )
