"""A run's kept checkpoints, one after the other: how what is inside a model changes in training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.analyze.figures import plot_label
from experiments.analyze.measure import places_of, sparsity_of
from experiments.analyze.report import ACTIVITY_TITLE, last
from experiments.run.folder import Workdir
from experiments.run.model_loading import Model, Weights, check_finite, load_trained
from experiments.terminal.figures import curve_look, panels
from experiments.terminal.tables import Section
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.storage import Place
from polycom_jax.training.checkpoint import all_steps
from polycom_jax.training.loss import Batch

Measured = Mapping[str, Any]
"""Run -> what `measure` gave, and `along`: what this `along` gave."""

ALL = "all"


class Shown(NamedTuple):
    """A curve: its name, where its number is, the number, how layers become one, and its axis."""

    name: str
    where: str
    number: str
    over: Callable[[Sequence[float]], Any]
    look: Mapping[str, Any] = {}


_SHARE: Mapping[str, Any] = {"ylim": (0, 1.02)}
_COUNT: Mapping[str, Any] = {"ylim": (0, None)}
_LOG: Mapping[str, Any] = {"yscale": "log"}

SHOWN = (
    Shown("RankMe of eigenvalues, last", "states", "rankme_of_eigenvalues", last),
    Shown("RankMe of singular values, last", "states", "rankme_of_singular_values", last),
    Shown("alpha-ReQ, last", "states", "alpha_req", last),
    Shown("neurons active at PPL-1%, mean", "sparsity", "active_share", np.mean, _SHARE),
    Shown("nonzero outputs, mean", "hidden", "nonzero_share", np.mean, _SHARE),
    Shown("massive activations, sum", "states", "count", np.sum, _COUNT),
    Shown("largest by median, max", "states", "largest_by_median", np.max, _LOG),
    Shown("attention's largest logit, max", "attention", "largest_logit", np.max),
    Shown("attention to the token before, max", "attention", "token_before", np.max, _SHARE),
    Shown("norm of the residual stream, last", "states", "mean_norm", last, _LOG),
)


def chosen_steps(folder: Place, asked: Sequence[str]) -> list[int]:
    """The steps that are asked for, ascending: "all" that a run keeps, or some by number.

    Raises:
        InputError: no run there, no checkpoint, or a step that is none or not kept.
    """
    require(
        storage.is_file(folder / "config.yaml"),
        f"--steps: {folder} is no run (it has no config.yaml), so there are no checkpoints to"
        " follow.",
    )
    kept = all_steps(Workdir(folder).checkpoints)
    require(bool(kept), f"--steps: there is no checkpoint in {Workdir(folder).checkpoints}.")
    if list(asked) == [ALL]:
        return kept
    known = {str(step): step for step in kept}
    unknown = [word for word in asked if word not in known]
    require(
        not unknown,
        f"--steps {' '.join(unknown)}: {folder} keeps the steps {', '.join(known)}; name some of"
        " these, or 'all'.",
    )
    return sorted({known[word] for word in asked})


def along(
    model: Model,
    batch: Batch,
    steps: Sequence[int],
    tell: Callable[[str], None],
    *,
    weights: Weights = "last",
    kept: bool = False,
) -> list[dict[str, Any]]:
    """`step`, and as of `places_of` and `sparsity_of`, of each of these checkpoints of a run.

    All run on the same batch, so that curves show the training alone. Where those are wanted that
    are `kept`, one that the run has deleted meanwhile is left out, with a word.

    Raises:
        InputError: a checkpoint that cannot be read, or holds numbers that are not finite.
    """
    found = []
    for step in steps:
        tell(f"step {step}")
        try:
            trained = load_trained(Workdir(model.folder), str(step), weights=weights)
        except InputError:
            if not kept or step in all_steps(Workdir(model.folder).checkpoints):
                raise
            tell(f"step {step} is left out: the run has deleted its checkpoint meanwhile")
            continue
        check_finite(f"{model.folder}, checkpoint of step {step}", trained.params)
        parts = (model.cfg, trained.params, batch)
        found.append({"step": step, **places_of(*parts), **sparsity_of(*parts)})
    require(bool(found), f"{model.folder} has deleted all checkpoints of {steps} meanwhile.")
    return found


def by_layer(found: Sequence[Mapping[str, Any]], shown: Shown) -> list[list[float]] | None:
    """A number in each layer at each step; None where the model has no such number."""
    if shown.where not in found[0]:
        return None
    return [[place[shown.number] for place in at[shown.where]] for at in found]


def values(found: Sequence[Mapping[str, Any]], shown: Shown) -> list[float] | None:
    """One number at each step."""
    layers = by_layer(found, shown)
    return None if layers is None else [float(shown.over(own)) for own in layers]


def section(measured: Measured) -> Section:
    """The table: a row for each step of each run."""
    rows = []
    for run, found in measured.items():
        columns = [values(found["along"], shown) for shown in SHOWN]
        for index, at in enumerate(found["along"]):
            cells = ["" if own is None else f"{own[index]:.4g}" for own in columns]
            rows.append((run, str(at["step"]), *cells))
    return Section(
        "Along the training",
        ("run", "step", *(shown.name for shown in SHOWN)),
        tuple(rows),
        (
            "Last, mean, sum, max: over layers; results.json has every layer. Definitions stand"
            f" below the table {ACTIVITY_TITLE!r}.",
        ),
    )


def draw(path: Place, measured: Measured) -> Place:
    """The figure: a panel for each number, a line for each run; its path, without suffix."""
    from matplotlib.ticker import MaxNLocator

    runs = [found["along"] for found in measured.values()]
    some = [shown for shown in SHOWN if any(shown.where in found[0] for found in runs)]
    note = "Last, mean, sum, max: over layers, which are the pale lines. Points: kept checkpoints."
    look = {"title": "Along the training", "note": note, "shared": "x", "size": (3.6, 2.4)}
    with panels(path, len(some), **look) as axes:
        for axis, shown in zip(axes, some, strict=True):
            for index, run in enumerate(measured):
                _draw_run(axis, shown, runs[index], curve_look(index), plot_label(run))
            axis.set(title=shown.name, xlabel="step", **shown.look)
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return path


def _draw_run(
    axis: Any,
    shown: Shown,
    found: Sequence[Mapping[str, Any]],
    look: Mapping[str, Any],
    label: str,
) -> None:
    layers = by_layer(found, shown)
    if layers:
        steps = [at["step"] for at in found]
        axis.plot(steps, np.array(layers, float), color=look["color"], alpha=0.3, linewidth=0.8)
        axis.plot(steps, values(found, shown), **look, label=label)
