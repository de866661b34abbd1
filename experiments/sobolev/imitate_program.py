"""The program `python -m experiments.sobolev imitate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sobolev import figures, markdown
from experiments.sobolev.construction_options import ImitateOptions
from experiments.sobolev.figures import Line, Panel
from experiments.sobolev.imitate import growth, imitate
from experiments.sobolev.store import Store, about
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display

Row = dict[str, Any]


def run(options: ImitateOptions, workdir: Path, command: str, display: Display) -> None:
    """Builds, measures, writes, and says what to look at."""
    store = Store(workdir, "imitate")
    store.open(options)
    pace = Pace(display)
    rows = imitate(options, pace.tell)
    pace.tell(1.0, "done")
    display.stop()
    store.write_rows("imitate", rows)
    store.write_json("imitate", command, {"rows": rows, "growth": growth(rows)})
    draw(store, rows)
    display.note(store.write_report(text(rows, command)))
    display.note("Next:\n  python -m experiments.sobolev rates")


def draw(store: Store, rows: Sequence[Row]) -> None:
    """Size and depth against eps: straight lines on a logarithmic axis."""
    names = list(dict.fromkeys(row["network"] for row in rows))

    def lines(x: str, y: str) -> list[Line]:
        found = []
        for name in names:
            own = [row for row in rows if row["network"] == name and row["sup"] > 0]
            if own:
                found.append(Line(name, [row[x] for row in own], [row[y] for row in own]))
        return found

    panels = [
        Panel("size", lines("eps", "size"), "eps", "nonzero parameters", y_log=False),
        Panel("depth", lines("eps", "depth"), "eps", "hidden layers", y_log=False),
        Panel("error", lines("size", "sup"), "nonzero parameters", "sup error", x_log=False),
    ]
    title = "ReLU networks that imitate PolyReLU"
    figures.draw(
        store.plots / "imitate", panels, title, 3, note="eps: the error that was asked for."
    )


def text(rows: Sequence[Row], command: str) -> str:
    """The report."""
    kept = all(row["sup"] <= row["eps"] for row in rows)
    counted = [row for row in rows if "pieces" in row]
    return "\n".join(
        [
            "# What it costs a ReLU network to imitate PolyReLU",
            "",
            *markdown.facts(about(command)),
            "",
            f"- The errors measured on [-1, 1] are {'' if kept else 'NOT '}within eps.",
            "- Size grows linearly in the bits log2(1/eps), so the error falls geometrically in the"
            " size: O(log(1/eps)) for fixed order, depth and width. These are upper bounds, of one"
            " construction.",
            "- size counts a coefficient for each unit, as of a PolyReLU network; a ReLU network"
            " has none, and weights leaves them out.",
            "- Proved is that an imitation of x^2 needs log2 of the pieces below in units: half a"
            " unit a bit.",
            "- A PolyReLU unit with a_1 = 1 and the rest 0 is a ReLU and costs nothing more: lower"
            " bounds hold for curved units only.",
            "",
            *markdown.table(growth(rows)),
            "",
            "## Linear pieces for a square on [0, 1]",
            "",
            "No function with fewer than 1 / sqrt(8 eps) linear pieces is within eps of x^2.",
            "",
            *markdown.table(
                [
                    {
                        "eps": row["eps"],
                        "pieces needed": row["fewest_pieces"],
                        "units needed": row["fewest_units"],
                        "pieces of the construction": row["pieces"],
                    }
                    for row in counted
                ]
            ),
            "",
            "Plots: plots/imitate. Rows: imitate.csv.",
        ]
    )
