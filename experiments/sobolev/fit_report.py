"""What the fits came to: files, figures, a short report whose sentences follow from the numbers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sobolev import figures, losses, markdown
from experiments.sobolev.choice import FAILED, RULE, failures
from experiments.sobolev.intervals import METRICS, beside, contests, overall, summary
from experiments.sobolev.options import TrainOptions, named_target
from experiments.sobolev.store import Store
from experiments.sobolev.store import about as ran

Row = dict[str, Any]


def write(
    store: Store,
    options: TrainOptions,
    cells: Sequence[Row],
    command: str,
    *,
    title: str,
    about: Sequence[str],
    axis: str = "parameters",
) -> str:
    """Writes STUDY.csv (one row a run), STUDY.json, the plots and STUDY.md; returns the findings.

    Args:
        store: where to.
        options: how networks were fitted.
        cells: of `train.Study.run`.
        command: that began it.
        title: of the report and the plots.
        about: paragraphs of the report that say what was fitted, and how.
        axis: what errors are drawn against: parameters, or training points, which are the sizes.
    """
    means = summary(cells)
    runs = [{**_head(cell), **run} for cell in cells for run in cell["runs"]]
    store.write_rows(store.study, runs)
    tables = {
        "summary": means,
        "learning_rates": [{**_head(cell), **row} for cell in cells for row in cell["selection"]],
        "contests": {metric: contests(cells, metric) for metric in METRICS},
        "overall": {metric: overall(cells, metric) for metric in METRICS},
        "beside": _beside_rows(cells),
    }
    store.write_json(store.study, command, tables)
    for metric in METRICS:
        draw(store, options, means, metric, title, axis)
    head = [f"# {title}", "", *markdown.facts(ran(command)), "", *about, ""]
    other = losses.section(cells, Path(options.beside), options.loss) if options.beside else []
    end = f"Plots: plots/{store.study}-{{l2,sup,h1}} as PNG and PDF. Every run: {store.study}.csv."
    return store.write_report(
        "\n".join([*head, *other, *sections(options, cells, means, tables), "", end])
    )


def _head(cell: Row) -> Row:
    return {name: cell[name] for name in ("activation", "size", "parameters")}


def draw(
    store: Store,
    options: TrainOptions,
    means: Sequence[Row],
    metric: str,
    title: str,
    axis: str = "parameters",
) -> None:
    """One panel a target: error against the axis, bands for seeds, theory's slope -n/d."""
    column = "parameters" if axis == "parameters" else "size"
    ends = [row[column] for row in means]
    panels = []
    for target in options.targets:
        rows = [row for row in means if row["target"] == target]
        lines = []
        for activation in dict.fromkeys(row["activation"] for row in rows):
            own = [row for row in rows if row["activation"] == activation]
            keys = (column, metric, f"{metric}_low", f"{metric}_high")
            x, y, low, high = ([row[key] for row in own] for key in keys)
            lines.append(figures.Line(activation, x, y, low, high))
        smoothness = named_target(target, options.dim).order
        exponent = -(smoothness - (metric == "h1")) / options.dim
        top = max((row[metric] for row in rows if math.isfinite(row[metric])), default=math.nan)
        if min(ends) < max(ends) and exponent < 0:
            span, label = (min(ends), max(ends)), "theory's rate for the class"
            lines.append(figures.power_line(span, (span[0], top), exponent, label))
        name = f"{target.replace(':', ', n = ')}"
        panels.append(figures.Panel(name, lines, axis, METRICS[metric]))
    title = f"{title}, d = {options.dim}: {METRICS[metric]}"
    note = (
        f"Geometric means over {options.seeds} seeds; bands: 95 % intervals of these."
        " Dashed: theory's slope, through the largest error of the smallest size."
    )
    figures.draw(store.plots / f"{store.study}-{metric}", panels, title, note=note, shared="xy")


def sections(
    options: TrainOptions, cells: Sequence[Row], means: Sequence[Row], tables: Row
) -> list[str]:
    """The report's tables, with the sentences that follow from them."""
    return [
        "## Over all sizes and targets",
        "",
        "Error over the geometric mean of all networks' errors, below 1 is better than"
        " average; averaged over sizes and targets for each seed, with the 95 % interval over"
        f" {options.seeds} seeds. It says nothing of other targets, sizes or budgets.",
        "",
        *markdown.table(_overall_rows(tables["overall"])),
        "",
        _overall_sentence(tables["overall"]["l2"]),
        "",
        "## Beside the best in L2",
        "",
        f"The error over that of {tables['beside'][0]['network']}, paired by seed, over all sizes"
        " and targets, with the 95 % interval. Failed: runs with an L2 error above"
        f" {FAILED}, where the target's mean has 1; they count in all means.",
        "",
        *markdown.table(tables["beside"]),
        "",
        "## Who was best",
        "",
        'By L2 error; "not told apart": the 95 % interval of the ratio to the best, paired by'
        " seed and Bonferroni-corrected within the row, reaches 1.",
        "",
        *markdown.table(
            [
                {
                    "target": row["target"],
                    "size": row["size"],
                    "best": row["best"],
                    "not told apart from it": ", ".join(row["not_told_apart"]) or "none",
                }
                for row in tables["contests"]["l2"]
            ]
        ),
        "",
        "## Errors",
        "",
        "Geometric mean over seeds [95 % interval], in units of the target's deviation.",
        "",
        *markdown.table(_error_rows(means)),
        "",
        "## Learning rates",
        "",
        f"Chosen on {', '.join(options.chosen_on)}. {RULE} A range was extended until the best"
        " stood inside it.",
        "",
        *markdown.table(_rate_rows(cells)),
    ]


def treatment(options: TrainOptions) -> str:
    """How all networks were fitted."""
    trained = {"l2": "values", "h1": "values and gradients"}[options.loss]
    return (
        f"All trained networks had {options.steps} steps of Adam on the squared errors of {trained}"
        f" at {options.batch_size} points of [0,1]^{options.dim} a step, warm-up and cosine decay,"
        " and the same batches for the same seed. The learning rate was chosen for each network on"
        f" other targets ({', '.join(options.chosen_on)}), with other seeds. Targets NAME:n have"
        " norm 1 in W^{n,inf}, and are fitted shifted and scaled to mean 0 and variance 1."
    )


def _overall_rows(by_metric: dict[str, list[Row]]) -> list[Row]:
    rows = []
    for first in by_metric["l2"]:
        row: Row = {"network": first["activation"]}
        for metric, label in METRICS.items():
            own = next(r for r in by_metric[metric] if r["activation"] == first["activation"])
            row[label] = markdown.ranged(own["ratio"], own["low"], own["high"])
        rows.append(row)
    return rows


def _beside_rows(cells: Sequence[Row]) -> list[Row]:
    """One row a network, the best in L2 first."""
    names = [row["activation"] for row in overall(cells, "l2")]
    ratios = {metric: beside(cells, names[0], metric) for metric in METRICS}
    rows = []
    for name in names:
        runs = [run for cell in cells if cell["activation"] == name for run in cell["runs"]]
        row: Row = {"network": name}
        for metric, label in METRICS.items():
            row[label] = markdown.ranged(*ratios[metric][name]) if name != names[0] else "1"
        rows.append(row | {"failed": f"{failures(runs)} of {len(runs)}"})
    return rows


def _overall_sentence(rows: list[Row]) -> str:
    best, *others = rows
    level = [row["activation"] for row in others if row["low"] <= best["high"]]
    head = f"In L2, {best['activation']} has the smallest error here"
    if not level:
        return f"{head}, and its interval overlaps no other's."
    return f"{head}; the intervals of {', '.join(level)} overlap its own."


def _error_rows(means: Sequence[Row]) -> list[Row]:
    rows = []
    for row in sorted(means, key=lambda row: (row["target"], row["size"], row["l2"])):
        shown = {key: row[key] for key in ("target", "size", "parameters")}
        shown["network"] = row["activation"]
        for metric, label in METRICS.items():
            shown[label] = markdown.ranged(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])
        rows.append(shown)
    return rows


def _rate_rows(cells: Sequence[Row]) -> list[Row]:
    rows: dict[str, Row] = {}
    for cell in cells:
        tried = [entry["learning_rate"] for entry in cell["selection"]]
        if tried:
            row = rows.setdefault(cell["activation"], {"network": cell["activation"]})
            row[f"size {cell['size']}"] = (
                f"{cell['learning_rate']:.1e} of [{tried[0]:.1e}, {tried[-1]:.1e}]"
            )
    return list(rows.values())
