"""Values and derivatives of inputs far from 0, which are few where inputs are drawn normally."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from polycom_jax.testing.examples import F32, Example, compare, compiled, float64, names
from polycom_jax.testing.numbers import FAR, Leaves, far_out


def values_far_out(example: Example) -> None:
    """Value and gradients of inputs from -FAR to FAR, each input in turn, against float64 and its
    differences: of each element, or along a direction of each row where rows are read."""
    params, dy = example.params(), example.cotangent()
    every = names(example.act)
    labels = [every[0], *every[1 + len(params) :]]
    for which in range(1 + example.act.gated):
        for hidden in far_out(example, which):
            value, (_, *slopes) = compiled(example.act, params, hidden, dy)
            along = [_direction(example, float64(h)) for h in hidden]
            terms = [float64(g) * d for g, d in zip(slopes, along, strict=True)]
            # Differences of what overflows in float64, too, are told below, and not by NumPy.
            with np.errstate(all="ignore"):
                wanted = _differences(example, float64(params), float64(hidden), along, float64(dy))
            got = [value, *(_of_rows(example, each) for each in terms)]
            sizes = [0.0, *(float(np.max(np.abs(_of_rows(example, abs(t))))) for t in terms)]
            check = "values and gradients far out against float64"
            # An input times a parameter is off by as much more as it is larger.
            compare(example, check, got, wanted, FAR * F32, hidden, labels=labels, sizes=sizes)


def _direction(example: Example, x: np.ndarray) -> np.ndarray:
    return np.sin(3 * x) if example.act.over_rows else np.ones_like(x)


def _of_rows(example: Example, terms: np.ndarray) -> np.ndarray:
    return np.sum(terms, axis=-1) if example.act.over_rows else terms


def _differences(
    example: Example,
    params: Leaves,
    hidden: Sequence[np.ndarray],
    along: Sequence[np.ndarray],
    dy: np.ndarray,
) -> list[np.ndarray]:
    """The value, and by each input the sum of dy times its change, by central differences."""

    def slope(index: int, step: float) -> np.ndarray:
        high, low = (
            example.evaluate(
                params,
                *hidden[:index],
                hidden[index] + sign * step * along[index],
                *hidden[index + 1 :],
            )
            for sign in (1, -1)
        )
        return _of_rows(example, dy * (high - low) / (2 * step))

    by_input = [(4 * slope(i, 5e-5) - slope(i, 1e-4)) / 3 for i in range(len(hidden))]
    return [example.evaluate(params, *hidden), *by_input]


FAR_OUT: Mapping[str, Callable[[Example], None]] = {"values_far_out": values_far_out}
