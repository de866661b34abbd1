"""Figures over sizes and lengths: loss against tokens and compute, differences, residuals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.compare.across.cells import Cell
from experiments.compare.across.differences import Difference
from experiments.compare.across.law import difference, residuals
from experiments.compare.across.resampled import Fitted
from experiments.compare.figures import draw_rates
from experiments.compare.studies import REFERENCE
from experiments.run.statistics import mean_interval
from experiments.terminal.figures import curve_look, panels
from polycom_jax.storage import Place

CURVE = 60
"""Points of a law's curve."""
ASIDE = 1.03
"""Bars of an arm stand to the right of those of the arm before by this ratio."""
SIZE = (4.0, 3.0)


def draw_all(
    folder: Place, cells: Sequence[Cell], differences: Sequence[Difference], fit: Fitted | None
) -> list[Place]:
    """Draws what there is something to draw of; the paths, without suffix."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.numbered))
    looks = {name: curve_look(i) for i, name in enumerate(names)}
    made = []
    if names:
        made += [
            _draw_tokens(folder / "scaling-tokens", cells, looks, fit),
            _draw_compute(folder / "scaling-compute", cells, looks),
        ]
    if any(d.result for d in differences):
        made.append(_draw_differences(folder / "scaling-differences", differences, looks, fit))
    if fit is not None:
        made.append(_draw_residuals(folder / "scaling-residuals", fit, looks))
    rates = folder / "scaling-rates"
    if draw_rates(rates, {cell.name: cell.sensitivities for cell in cells}):
        made.append(rates)
    return made


Looks = Mapping[str, Any]


def _line(look: Mapping[str, Any]) -> dict[str, Any]:
    """Of a curve without points."""
    return {"color": look["color"], "linewidth": 0.8}


def log_along(axis: Any) -> None:
    """Counts on a logarithmic axis, as 300k or 2M, however few decades there are."""
    from matplotlib.ticker import EngFormatter, LogLocator

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter("")


def _draw_tokens(path: Place, cells: Sequence[Cell], looks: Looks, fit: Fitted | None) -> Place:
    """A panel a size."""
    sizes = sorted({cell.parameters for cell in cells if cell.numbered})
    note = "Means over seeds, 95 % intervals; each point is of runs that decayed there."
    note += " Dashed: fitted laws." if fit else ""
    title = "Held-out loss against tokens"
    with panels(path, len(sizes), title=title, note=note, size=SIZE) as axes:
        for axis, size in zip(axes, sizes, strict=True):
            own = [cell for cell in cells if cell.parameters == size]
            for cell in own:
                for name, arm in cell.numbered.items():
                    losses = cell.losses(name, list(arm.good))
                    reach = _reach(losses)
                    axis.errorbar(cell.tokens, losses.mean(0), reach, label=name, **looks[name])
            for name, found in fit.fits.items() if fit else ():
                if size in found.points.sizes:
                    x = np.geomspace(own[0].tokens[0], max(c.tokens[-1] for c in own), CURVE)
                    axis.plot(x, found.law.loss(size, x), linestyle="--", **_line(looks[name]))
            log_along(axis)
            axis.set(title=f"{size:,} parameters", xlabel="tokens", ylabel="loss (nats a token)")
    return path


def _reach(losses: np.ndarray) -> np.ndarray:
    """How far intervals of the means over seeds reach to both sides; of one seed, nowhere."""
    if len(losses) < 2:
        return np.zeros((2, losses.shape[1]))
    return np.array([(m - low, high - m) for m, low, high in map(mean_interval, losses.T)]).T


def _draw_compute(path: Place, cells: Sequence[Cell], looks: Looks) -> Place:
    """All sizes in one panel."""
    note = "Means over seeds; FLOPs of training, the activation's own included. A line a folder."
    title = "Held-out loss against compute"
    with panels(path, 1, title=title, note=note, size=(5.4, 3.6)) as (axis,):
        for cell in cells:
            for name, arm in cell.numbered.items():
                x = arm.flops * np.array(cell.tokens)
                mean = cell.losses(name, list(arm.good)).mean(0)
                axis.plot(x, mean, label=name, **looks[name])
        axis.set_xscale("log")
        axis.set(xlabel="FLOPs", ylabel="held-out loss (nats a token)")
    return path


def _draw_differences(
    path: Place, found: Sequence[Difference], looks: Looks, fit: Fitted | None
) -> Place:
    """A panel a size; bands of the laws' differences where there are laws."""
    sizes = sorted({d.parameters for d in found})
    note = f"arm - {REFERENCE}, paired by seed. Bars: 95 % intervals."
    note += " Lines and bands: the difference of fitted laws, 95 %." if fit else ""
    title = f"Differences to {REFERENCE} in held-out loss"
    with panels(path, len(sizes), title=title, note=note, size=SIZE) as axes:
        for axis, size in zip(axes, sizes, strict=True):
            own = [d for d in found if d.parameters == size and d.result]
            for i, name in enumerate(dict.fromkeys(d.arm for d in own)):
                _bars(axis, [d for d in own if d.arm == name], ASIDE**i, looks[name])
                if fit is not None and name in fit.beside:
                    _law_band(axis, fit, name, size, [d.tokens for d in own], looks[name])
            axis.axhline(0, color="0.45", linewidth=0.8)
            log_along(axis)
            axis.set(title=f"{size:,} parameters", xlabel="tokens", ylabel="difference (nats a"
                     " token)")  # fmt: skip
    return path


def _bars(axis: Any, own: Sequence[Difference], aside: float, look: Any) -> None:
    """Means and intervals, a little to the right of the arm before."""
    rows = [(d.tokens * aside, d.result) for d in own if d.result]
    x, results = zip(*rows, strict=True)
    mean = np.array([r.mean for r in results])
    ends = np.array([[r.mean - r.low, r.high - r.mean] for r in results]).T
    axis.errorbar(x, mean, yerr=ends, linewidth=1.0, linestyle="none", label=own[0].arm, **look)


def _law_band(
    axis: Any, fit: Fitted, arm: str, size: float, tokens: Sequence[int], look: Any
) -> None:
    if size not in fit.beside[arm][0].points.sizes:
        return
    x = np.geomspace(min(tokens), max(tokens), CURVE // 3)
    bands = [fit.band(arm, difference, size, float(each)) for each in x]
    axis.plot(x, [b.value for b in bands], **_line(look))
    axis.fill_between(x, [b.low for b in bands], [b.high for b in bands], alpha=0.12, linewidth=0,
                      color=look["color"])  # fmt: skip


def _draw_residuals(path: Place, fit: Fitted, looks: Looks) -> Place:
    """Measured less fitted, against tokens and against size."""
    title = "Residuals of the fitted laws"
    note = "Means over seeds less L(N, D)."
    with panels(path, 2, title=title, note=note, size=SIZE, shared="y") as axes:
        for axis, what in zip(axes, ("tokens", "parameters"), strict=True):
            for name, own in fit.fits.items():
                x, left = getattr(own.points, what), residuals(own.law, own.points)
                axis.plot(x, left, linestyle="none", label=name, **looks[name])
            axis.axhline(0, color="0.45", linewidth=0.8)
            log_along(axis)
            axis.set(xlabel=what, ylabel="residual (nats a token)")
    return path
