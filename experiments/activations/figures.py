"""All curves on one page, each with its derivative."""

from collections.abc import Mapping
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
        f" {ROW:,} standard-normal quantiles, and its derivative is the slope of that curve."
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
    rows = (jnp.array(x)[None], jnp.ones((1, ROW), jnp.float32))[: 1 + act.gated]
    width = np.lcm.reduce([ROW, *(each.groups for each in act.parameters.values())])
    tiled = [jnp.tile(row, (1, int(width) // ROW)) for row in rows]
    params = act.init(jax.random.key(0), int(width))
    y, vjp = jax.vjp(act.apply, params, *tiled)
    value = np.asarray(y, np.float64)[0, :ROW]
    if act.over_rows:
        return x, value, np.gradient(value, x)
    slope = vjp(jnp.ones_like(y))[1]
    return x, value, np.asarray(slope, np.float64)[0, :ROW]


def _limits(values: np.ndarray) -> tuple[float, float]:
    """All of it, but nothing that runs away."""
    low, high = max(-RANGE, float(np.min(values))), min(RANGE, float(np.max(values)))
    room = 0.08 * max(high - low, 0.5)
    return low - room, high + room
