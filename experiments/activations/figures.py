"""All curves on one page, each with its derivative."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run.report import ROW, normal_quantiles
from experiments.terminal.figures import BLUE, ORANGE, panels
from polycom_jax.storage import Place
from polycom_jax.table import Activation

RANGE = 4.0
"""Inputs that are shown."""


def draw(folder: Place, chosen: Mapping[str, Activation]) -> Place:
    """Draws the page; returns its path, without a suffix."""
    path = folder / "curves"
    note = (
        "At the start; gated ones with up = 1. What reads whole rows is applied to one row of"
        f" {ROW:,} standard-normal quantiles, spread evenly over groups of features, and its"
        " derivative is by an element itself."
    )
    title = "Activations and their derivatives"
    look: Any = {"columns": 6, "size": (2.1, 1.7)}
    with panels(path, len(chosen), title=title, note=note, **look) as axes:
        for (name, act), place in zip(chosen.items(), axes, strict=True):
            x, y, slope = curve(act)
            place.axhline(0, color="0.7", linewidth=0.6)
            place.axvline(0, color="0.7", linewidth=0.6)
            place.plot(x, y, color=BLUE, label="value")
            place.plot(x, slope, color=ORANGE, linestyle="--", linewidth=1.0, label="derivative")
            low, high = _limits(np.concatenate([y, slope]))
            place.set(title=name, xlim=(-RANGE, RANGE), ylim=(low, high))
    return path


def curve(act: Activation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs, values, derivatives) at the start."""
    x = normal_quantiles(ROW) if act.over_rows else np.linspace(-RANGE, RANGE, ROW, dtype="f4")
    place = _spread(ROW) if act.over_rows else np.arange(ROW)
    width = int(np.lcm.reduce([ROW, *(each.groups for each in act.parameters.values())]))
    row = jnp.tile(jnp.array(x[place]), width // ROW)
    params = act.init(jax.random.key(0), width)

    def f(row: jax.Array) -> jax.Array:
        return act.apply(params, row, *[jnp.ones_like(row)] * act.gated)

    value = np.asarray(jax.jit(f)(row), np.float64)
    slope = np.asarray((_own_slopes if act.over_rows else _slopes)(f, row), np.float64)
    back = np.argsort(place)
    return x, value[:ROW][back], slope[:ROW][back]


def _spread(count: int) -> np.ndarray:
    """0 ... count - 1, a power of two, with the bits of each reversed: any aligned group of so many
    as a smaller power of two has numbers from all parts.
    """
    bits = count.bit_length() - 1
    return np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(count)])


def _slopes(f: Callable[[jax.Array], jax.Array], row: jax.Array) -> jax.Array:
    return jax.jit(lambda row: jax.jvp(f, (row,), (jnp.ones_like(row),))[1])(row)


def _own_slopes(f: Callable[[jax.Array], jax.Array], row: jax.Array) -> jax.Array:
    """The diagonal of the Jacobian."""

    @jax.jit
    def of_some(row: jax.Array, first: jax.Array) -> jax.Array:
        def one(i: jax.Array) -> jax.Array:
            return jax.jvp(f, (row,), (jnp.zeros_like(row).at[i].set(1),))[1][i]

        return jax.vmap(one)(first + jnp.arange(ROW // 8))

    return jnp.concatenate([of_some(row, jnp.int32(i)) for i in range(0, ROW, ROW // 8)])


def _limits(values: np.ndarray) -> tuple[float, float]:
    """All of it, but nothing that runs away."""
    low, high = max(-RANGE, float(np.min(values))), min(RANGE, float(np.max(values)))
    room = 0.08 * max(high - low, 0.5)
    return low - room, high + room
