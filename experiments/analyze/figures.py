"""Figures of an analysis: a line, or a panel, for each run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.analyze.measure import by_block
from experiments.plots import COLOURS, panels

Measured = Mapping[str, Any]
"""Run -> what `measure` gave."""


def draw_all(folder: Path, measured: Measured) -> list[Path]:
    """Draws all of them; the paths, without suffix."""
    drawn = {
        "ranks": _draw_ranks,
        "spectra": _draw_spectra,
        "cosine": lambda path, m: _draw_similarity(path, m, "cosine", "cosine similarity"),
        "cka": lambda path, m: _draw_similarity(path, m, "cka", "linear CKA"),
        "activity": _draw_activity,
        "gradients": _draw_gradients,
        "curves": _draw_curves,
    }
    for name, draw in drawn.items():
        draw(folder / name, measured)
    return [folder / name for name in drawn]


def _colours(measured: Measured) -> dict[str, str]:
    return {run: COLOURS[i % len(COLOURS)] for i, run in enumerate(measured)}


def _by_layer(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("layer")


def _matrices(measured: Measured) -> list[str]:
    """Names of matrices with more than one layer that any run has."""
    return list(
        dict.fromkeys(
            name
            for found in measured.values()
            for name, matrix in found["weights"].items()
            if "/" in name and matrix["ranks"]
        )
    )


def _draw_ranks(path: Path, measured: Measured) -> None:
    """Effective rank of each matrix by layer, as a share of the largest that its shape allows."""
    names, colours = _matrices(measured), _colours(measured)
    with panels(path, len(names), width=3.2, height=2.6) as axes:
        for axis, name in zip(axes, names, strict=True):
            for run, found in measured.items():
                if name in found["weights"]:
                    matrix = found["weights"][name]
                    shares = np.array(matrix["ranks"]["effective"]) / min(matrix["shape"])
                    axis.plot(shares, marker="o", markersize=3, color=colours[run], label=run)
            axis.set_title(name)
            _by_layer(axis)
            axis.set_ylabel("effective rank / full")
        axes[0].legend(fontsize=7)


def _draw_spectra(path: Path, measured: Measured) -> None:
    """Singular values by the largest, geometric mean over layers."""
    names, colours = _matrices(measured), _colours(measured)
    with panels(path, len(names), width=3.2, height=2.6) as axes:
        for axis, name in zip(axes, names, strict=True):
            for run, found in measured.items():
                if name in found["weights"]:
                    s = np.array(found["weights"][name]["singular_values"])
                    relative = np.maximum(s / s[:, :1], 1e-12)
                    index = np.linspace(0, 1, s.shape[1])
                    middle = np.exp(np.log(relative).mean(axis=0))
                    axis.plot(index, middle, color=colours[run], label=run)
            axis.set_yscale("log")
            axis.set_title(name)
            axis.set_xlabel("index / number")
            axis.set_ylabel("singular value / largest")
        axes[0].legend(fontsize=7)


def _draw_similarity(path: Path, measured: Measured, name: str, label: str) -> None:
    """A map for each run: places along the depth against each other; all on one scale."""
    maps = {run: np.array(found["inside"][name]) for run, found in measured.items()}
    low = min(float(values.min()) for values in maps.values())
    with panels(path, len(maps), width=3.4, height=3.0) as axes:
        for axis, (run, values) in zip(axes, maps.items(), strict=True):
            image = axis.imshow(values, vmin=low, vmax=1.0, origin="lower", cmap="viridis")
            axis.grid(visible=False)
            axis.set_title(run, fontsize=8)
            axis.set_xlabel("before layer (last: after all)")
            if axis.figure is not None:
                axis.figure.colorbar(image, ax=axis, label=label)


_ACTIVITY = (
    ("inputs", "kurtosis", "kurtosis of the activation's input"),
    ("hidden", "kurtosis", "kurtosis of its output"),
    ("hidden", "near_zero_share", "outputs near zero, share"),
    ("hidden", "zero_share", "outputs that are zero, share"),
    ("hidden", "rms", "rms of its output"),
    ("states", "largest_by_median", "residual stream: largest / median"),
)


def _draw_activity(path: Path, measured: Measured) -> None:
    colours = _colours(measured)
    with panels(path, len(_ACTIVITY), width=3.4, height=2.6) as axes:
        for axis, (where, number, label) in zip(axes, _ACTIVITY, strict=True):
            for run, found in measured.items():
                values = [place[number] for place in found["inside"][where]]
                axis.plot(values, marker="o", markersize=3, color=colours[run], label=run)
            _by_layer(axis)
            axis.set_title(label, fontsize=8)
        axes[0].legend(fontsize=7)


def _draw_gradients(path: Path, measured: Measured) -> None:
    colours = _colours(measured)
    blocks = {run: by_block(found["gradients"]) for run, found in measured.items()}
    names = list(dict.fromkeys(name for found in blocks.values() for name in found))
    with panels(path, len(names), width=3.6, height=2.8) as axes:
        for axis, name in zip(axes, names, strict=True):
            for run, found in blocks.items():
                if name in found:
                    axis.plot(found[name], marker="o", color=colours[run], label=run)
            axis.set_yscale("log")
            axis.set_title(f"gradient's norm, {name}")
            _by_layer(axis)
        axes[0].legend(fontsize=7)


def _draw_curves(path: Path, measured: Measured) -> None:
    """A panel for each run: output over input, one line a layer, a band where rows differ."""
    import matplotlib as mpl

    with panels(path, len(measured), width=4.2, height=3.4) as axes:
        for axis, (run, found) in zip(axes, measured.items(), strict=True):
            curves: Sequence[Mapping[str, Any]] = found["inside"]["curves"]
            for layer, curve in enumerate(curves):
                colour = mpl.colormaps["viridis"](0.9 * layer / max(len(curves) - 1, 1))
                axis.plot(curve["x"], curve["mean"], color=colour, label=f"layer {layer}")
                axis.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.15)
            axis.set_title(f"{run}: {found['model']['activation']}", fontsize=8)
            axis.set_xlabel("input (0.1 % left out at either end)")
            axis.set_ylabel("output")
            if len(curves) <= 8:
                axis.legend(fontsize=7)
