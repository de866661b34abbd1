"""Figures of an analysis: a line, or a panel, for each run; dashed, its config untrained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analyze.measure import by_block
from experiments.terminal.figures import (
    MARKERS,
    REFERENCE,
    colour_bar,
    curve_look,
    layer_bar,
    layer_line,
    panels,
)
from polycom_jax.storage import Place

Measured = Mapping[str, Any]
"""Run -> what `measure` gave."""
Get = Callable[[Mapping[str, Any]], Sequence[float] | np.ndarray | None]
"""A line's values, of a run or of its untrained config; None: it has none."""

UNTRAINED = "Dashed: a random model, the same config as it is initialised."


def draw_all(folder: Place, measured: Measured) -> list[Place]:
    """Draws all that there is something to draw in; the paths, without suffix."""
    measured = {plot_label(run): found for run, found in measured.items()}
    figures = {
        "ranks": _draw_ranks,
        "spectra": _draw_spectra,
        "cosine": lambda path, m: _draw_similarity(path, m, "cosine", "cosine similarity"),
        "cka": lambda path, m: _draw_similarity(path, m, "cka", "linear CKA"),
        "activity": _draw_activity,
        "gradients": _draw_gradients,
        "curves": _draw_curves,
    }
    return [folder / name for name, draw in figures.items() if draw(folder / name, measured)]


def plot_label(run: str) -> str:
    """Matplotlib leaves what begins with an underscore out of legends."""
    return f" {run}" if run.startswith("_") else run


def _lines(measured: Measured, get: Get) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Each run's values and how they look, and those of its config untrained."""
    for index, (run, found) in enumerate(measured.items()):
        look = {**curve_look(index), "label": run}
        dashed = {**look, "label": f"{run}, untrained", "linestyle": "--", "linewidth": 1.0}
        for part, style in ((found, look), (found.get("untrained"), dashed)):
            values = get(part) if part else None
            if values is not None:
                yield np.array(values, float), style


def _note(measured: Measured, *more: str) -> str:
    dashed = [UNTRAINED] if any(found.get("untrained") for found in measured.values()) else []
    return " ".join([*more, *dashed])


def _by_layer(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("layer")


def _matrices(measured: Measured) -> list[str]:
    """Names of the layers' matrices that any run has."""
    return list(
        dict.fromkeys(
            name
            for found in measured.values()
            for name, matrix in found["weights"].items()
            if "/" in name and matrix["ranks"]
        )
    )


def _draw_ranks(path: Place, measured: Measured) -> bool:
    """Effective rank of each matrix by layer, as a share of the largest that its shape allows."""

    def shares(found: Mapping[str, Any], name: str) -> np.ndarray | None:
        matrix = found["weights"].get(name)
        return matrix and np.array(matrix["ranks"]["effective"]) / min(matrix["shape"])

    names = _matrices(measured)
    title, size = "Effective rank of weight matrices", (3.2, 2.4)
    with panels(
        path, len(names), title=title, note=_note(measured), shared="xy", size=size
    ) as axes:
        for axis, name in zip(axes, names, strict=True):
            for values, look in _lines(measured, lambda found, name=name: shares(found, name)):
                axis.plot(values, **look)
            _by_layer(axis)
            axis.set(title=name, ylabel="rank by the greatest", ylim=(0, 1.02))
    return True


def _draw_spectra(path: Place, measured: Measured) -> bool:
    """Singular values by the largest, geometric mean over layers."""

    def spectrum(found: Mapping[str, Any], name: str) -> np.ndarray | None:
        if name not in found["weights"]:
            return None
        s = np.array(found["weights"][name]["singular_values"])
        relative = np.maximum(s / s[:, :1], 1e-12)
        return np.exp(np.log(relative).mean(axis=0))

    names = _matrices(measured)
    title, size = "Singular values of weight matrices", (3.2, 2.4)
    note = _note(measured, "Geometric means over layers.")
    with panels(path, len(names), title=title, note=note, shared="xy", size=size) as axes:
        for axis, name in zip(axes, names, strict=True):
            for values, look in _lines(measured, lambda found, name=name: spectrum(found, name)):
                few = {"marker": ""} if look["marker"] == MARKERS[0] else {"markevery": 0.2}
                axis.plot(np.linspace(0, 1, len(values)), values, **{**look, **few})
            axis.set(
                title=name, yscale="log", xlabel="index by their number", ylabel="by the largest"
            )
    return True


def _draw_similarity(path: Place, measured: Measured, name: str, label: str) -> bool:
    """A map for each run and for its config untrained: places along the depth; all on one scale."""
    maps = [
        (values, look["label"])
        for values, look in _lines(measured, lambda found: found["inside"][name])
    ]
    low = min(float(values.min()) for values, _ in maps)
    title = f"Residual stream along the depth: {label}"
    note = "Places: before each layer, and after the last. One scale for all maps."
    columns = 2 if len(maps) > len(measured) else 3
    with panels(path, len(maps), title=title, note=note, columns=columns, size=(3.4, 2.8)) as axes:
        image = None
        for axis, (values, run) in zip(axes, maps, strict=True):
            image = axis.imshow(values, vmin=low, vmax=1.0, origin="lower", cmap="viridis")
            axis.grid(visible=False)
            axis.set(title=run, xlabel="place", ylabel="place")
        colour_bar(image, axes, label)
    return True


_ACTIVITY = (
    ("inputs", "kurtosis", "activation's input", "kurtosis"),
    ("hidden", "kurtosis", "activation's output", "kurtosis"),
    ("inputs", "rms", "activation's input", "rms"),
    ("hidden", "rms", "activation's output", "rms"),
    ("hidden", "near_zero_share", "outputs near zero", "share near zero"),
    ("hidden", "nonzero_share", "outputs that are not zero", "share"),
    ("sparsity", "active_share", "neurons active at PPL-1%", "share"),
    ("states", "largest_by_median", "residual stream", "largest by median size"),
    ("states", "mean_norm", "residual stream", "mean norm"),
    ("states", "rankme_of_eigenvalues", "residual stream", "RankMe of eigenvalues"),
    ("states", "alpha_req", "residual stream", "alpha-ReQ"),
    ("attention", "largest_logit", "attention", "largest logit"),
    ("attention", "token_before", "attention to the token before", "share"),
)
"""(where it is, number, title, unit); panels of one unit have one scale."""

_SCALES: Mapping[str, Any] = {
    "share": {"ylim": (0, 1.02)},
    "share near zero": {"ylim": (0, None)},
    "alpha-ReQ": {},
    "largest logit": {},
}
"""Of units that may be zero or negative; all others are on logarithmic scales."""


def _of_places(found: Mapping[str, Any], where: str, number: str) -> list[float] | None:
    places = found["inside"].get(where)
    return places and [place[number] for place in places]


def _draw_activity(path: Place, measured: Measured) -> bool:
    """Numbers on what enters and leaves the activation, and on the residual stream."""
    lines = {
        (name, unit): list(
            _lines(measured, lambda found, w=where, n=number: _of_places(found, w, n))
        )
        for where, number, name, unit in _ACTIVITY
    }
    shown = {key: own for key, own in lines.items() if any(np.nansum(y) > 0 for y, _ in own)}
    left = ", ".join(key[0] for key, own in lines.items() if own and key not in shown)
    note = _note(measured, *([f"Left out, zero in all layers: {left}."] if left else []))
    look = {"title": "Activations by layer", "note": note, "shared": "x"}
    with panels(path, len(shown), columns=2, size=(3.8, 2.3), **look) as axes:
        first: dict[str, Any] = {}
        for axis, ((name, unit), own) in zip(axes, shown.items(), strict=True):
            if first.setdefault(unit, axis) is not axis:
                axis.sharey(first[unit])
            for values, look in own:
                axis.plot(values, **look)
            _by_layer(axis)
            axis.set(title=name, ylabel=unit, **_SCALES.get(unit, {"yscale": "log"}))
    return True


def _draw_gradients(path: Place, measured: Measured) -> bool:
    """Norm of the gradient of whole blocks, by layer."""
    names = list(
        dict.fromkeys(n for found in measured.values() for n in by_block(found["gradients"]))
    )
    lines = {
        name: list(_lines(measured, lambda found, n=name: by_block(found["gradients"]).get(n)))
        for name in names
    }
    shown = {name: own for name, own in lines.items() if any(np.nansum(y) > 0 for y, _ in own)}
    if not shown:
        return False
    title, note = "Gradient of the mean loss by layer", _note(measured)
    size = (3.8, 2.6)
    with panels(path, len(shown), title=title, note=note, shared="xy", size=size) as axes:
        for axis, (name, own) in zip(axes, shown.items(), strict=True):
            for values, look in own:
                axis.plot(values, **look)
            _by_layer(axis)
            axis.set(title=name, ylabel="norm", yscale="log")
    return True


def _draw_curves(path: Place, measured: Measured) -> bool:
    """A panel for each run: output over input, one line a layer, a band where rows differ."""
    layers = max(len(found["inside"]["curves"]) for found in measured.values())
    title = "Activations as they are used: output over input"
    bands = (
        "Lines: means; bands: from a tenth to nine tenths of the outputs at that input."
        " A thousandth of the inputs is left out at either end."
    )
    note, size = _note(measured, bands), (4.2, 3.0)
    with panels(path, len(measured), title=title, note=note, shared="xy", size=size) as axes:
        for axis, (run, found) in zip(axes, measured.items(), strict=True):
            for layer, curve in enumerate(found["inside"]["curves"]):
                look = layer_line(layer, layers)
                axis.plot(curve["x"], curve["mean"], **look)
                band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                axis.fill_between(curve["x"], curve["low"], curve["high"], **band)
            if found.get("untrained"):
                for curve in found["untrained"]["inside"]["curves"]:
                    dashed = {**REFERENCE, "label": "untrained, each layer"}
                    axis.plot(curve["x"], curve["mean"], **dashed)
            axis.set(
                title=f"{run}: {found['model']['activation']}", xlabel="input", ylabel="output"
            )
        layer_bar(axes, layers)
    return True
