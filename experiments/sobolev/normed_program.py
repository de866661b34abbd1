"""The program `python -m experiments.sobolev normed`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sobolev import figures, markdown
from experiments.sobolev.construction_options import NormedOptions
from experiments.sobolev.figures import Line, Panel
from experiments.sobolev.normed import approximations, imitations, slopes
from experiments.sobolev.store import Store, about
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display

Row = dict[str, Any]

SHARE = 0.9
"""Of the work that approximations take; imitations take the rest."""


def run(options: NormedOptions, workdir: Path, command: str, display: Display) -> None:
    """Builds, measures, writes, and says what to look at."""
    store = Store(workdir, "normed")
    store.open(options)
    pace = Pace(display)
    rows = approximations(options, lambda s, doing: pace.tell(SHARE * s, doing))
    imitated = imitations(options, lambda s, doing: pace.tell(SHARE + (1 - SHARE) * s, doing))
    pace.tell(1.0, "done")
    display.stop()
    tables = {"slopes": slopes(rows), "imitations": imitated}
    store.write_rows("normed", rows)
    store.write_json("normed", command, {"rows": rows, **tables})
    draw(store, options, rows)
    display.note(store.write_report(text(rows, tables, command)))
    display.note("Next:\n  python -m experiments.sobolev rates")


def draw(store: Store, options: NormedOptions, rows: Sequence[Row]) -> None:
    """Error and bound against the depth, which is the number of coefficients."""
    panels = [
        Panel(f"n = {n}, d = {d}", _lines(rows, n, d), "hidden layers N^d", "sup error")
        for d in options.dims
        for n in options.orders
    ]
    width = ", ".join(f"{6 * d + 1} for d = {d}" for d in options.dims)
    figures.draw(
        store.plots / "normed",
        panels,
        "PolyNorm networks of fixed width for Sobolev functions",
        len(options.orders),
        note=f"Dashed: the bound for the whole unit ball. Width: {width}.",
    )


def _lines(rows: Sequence[Row], n: int, d: int) -> list[Line]:
    own = [r for r in rows if (r["n"], r["d"], r["coefficients"]) == (n, d, "square")]
    lines = []
    for target in dict.fromkeys(row["target"] for row in own):
        these = [row for row in own if row["target"] == target]
        depths = [row["depth"] for row in these]
        lines.append(Line(target.split(":")[0], depths, [row["sup"] for row in these]))
    bounds = {row["depth"]: row["bound"] for row in own}
    return [*lines, Line("bound", list(bounds), list(bounds.values()), reference=True)]


def text(rows: Sequence[Row], tables: Row, command: str) -> str:
    """The report."""
    kept = all(row["sup"] <= row["bound"] + row["rounding"] for row in rows)
    share = max(row["sup"] / row["bound"] for row in rows)
    within = all(row["sup"] <= row["error"] for row in tables["imitations"])
    shown = rows[0]["target"].split(":")[0]
    columns = ("target", "d", "coefficients", "N", "width", "size")
    numbers = ("sup", "bound", "rounding", "float32", "largest weight")
    return "\n".join(
        [
            "# PolyNorm networks of fixed width, built",
            "",
            *markdown.facts(about(command)),
            "",
            "Statement and proof: [PolyNorm reaches the optimal rate](polynorm_theorem.md).",
            "",
            f"- The {len(rows)} measured errors are {'' if kept else 'NOT '}within the bound for"
            f" the unit ball; the largest is {share:.2f} of it.",
            f"- Imitations are {'' if within else 'NOT '}within the error asked for.",
            "- The networks are evaluated by the library's own `poly_norm`, epsilon included.",
            "- rounding: distance in float64 from the polynomial that the network stands for;"
            " float32: distance of the same network in float32.",
            "",
            "## Slopes",
            "",
            "Of log error in log depth, the depth being N^d. Theory: -n/d.",
            "",
            *markdown.table([r for r in tables["slopes"] if r["coefficients"] == "square"]),
            "",
            "## Networks",
            "",
            f"Those for {shown}; all are in normed.csv.",
            "",
            *markdown.table(
                [
                    {k: row[k] for k in (*columns, *numbers)}
                    for row in rows
                    if row["target"].startswith(shown)
                ]
            ),
            "",
            "## Imitations",
            "",
            "PolyReLU and ReLU networks on [-1, 1]^d by PolyNorm networks.",
            "",
            *markdown.table(tables["imitations"]),
            "",
            "Plots: plots/normed. Rows: normed.csv.",
        ]
    )
