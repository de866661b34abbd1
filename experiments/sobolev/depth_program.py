"""The program `python -m experiments.sobolev depth`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sobolev import depth, figures, markdown
from experiments.sobolev.construction_options import DepthOptions
from experiments.sobolev.figures import Line, Panel
from experiments.sobolev.store import Store, about
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display

Row = dict[str, Any]

ROUNDING = 1e-13
"""Of float64, in sums that are carried with `depth.OFFSET` added, where a bound is attained."""

NAMES = {
    "poly_relu": "PolyReLU (Theorem 3)",
    "interpolation": "linear interpolation",
    "poly_norm": "PolyNorm of fixed width",
}


def run(options: DepthOptions, workdir: Path, command: str, display: Display) -> None:
    """Builds, measures, writes, and says what to look at."""
    store = Store(workdir, "depth")
    store.open(options)
    pace = Pace(display)
    rows = depth.measured(list(depth.cases(options)), pace.tell)
    pace.tell(1.0, "squares")
    squares = depth.squares(options)
    display.stop()
    tables = {"rows": rows, "squares": squares, "prices": depth.prices(rows)}
    store.write_rows("depth", [*rows, *squares])
    store.write_json("depth", command, tables)
    draw(store, options, rows, squares)
    display.note(store.write_report(text(tables, command)))
    display.note("Next:\n  python -m experiments.sobolev rates")


def draw(store: Store, options: DepthOptions, rows: Sequence[Row], squares: Sequence[Row]) -> None:
    """Error and bound against depth, a panel an order and dimension; last the square."""
    panels = [
        Panel(
            f"n = {n}, d = {d}: {options.targets[0]}",
            [
                line
                for size in options.sizes
                for kind in depth.KINDS
                for line in _lines(rows, options.targets[0], n, d, size, kind)
            ],
            "hidden layers",
            "sup error",
        )
        for d in options.dims
        for n in options.orders
    ]
    folded = [
        line
        for size in options.squares
        for line in _both(f"ReLU, {size} numbers", [r for r in squares if r["numbers"] == size])
    ]
    panels.append(Panel("x^2 by ReLU", folded, "hidden layers", "sup error"))
    title = "Error against depth, at a fixed number of parameters"
    note = "Dashed: the bound for the unit ball; of x^2, the error by its formula."
    figures.draw(store.plots / "depth", panels, title, 2, note=note)


def _lines(rows: Sequence[Row], target: str, n: int, d: int, size: int, kind: str) -> list[Line]:
    key = (kind, n, d, f"{target}:{n}", size)
    names = ("network", "n", "d", "target", "numbers")
    own = [row for row in rows if tuple(row[name] for name in names) == key]
    return _both(f"{NAMES[kind]}, {size}", own)


def _both(label: str, own: Sequence[Row]) -> list[Line]:
    depths = [row["depth"] for row in own]
    if not own:
        return []
    bound = Line("bound", depths, [row["bound"] for row in own], reference=True)
    return [Line(label, depths, [row["sup"] for row in own]), bound]


def text(tables: Row, command: str) -> str:
    """The report."""
    rows, squares = tables["rows"], tables["squares"]
    kept = all(row["sup"] <= row["bound"] + ROUNDING for row in [*rows, *squares])
    sobolev = all(row["h1"] <= row["h1 bound"] for row in rows if "h1 bound" in row)
    above = all(row["sup"] >= row["least for these widths"] for row in squares)
    return "\n".join(
        [
            "# Error against depth, at a fixed number of parameters",
            "",
            *markdown.facts(about(command)),
            "",
            f"- All sup errors are {'' if kept else 'NOT '}within their bounds, up to"
            f" {ROUNDING:g} of rounding, and those in H1"
            f" are {'' if sobolev else 'NOT '}within theirs.",
            f"- Theorem 3's networks and interpolants: {_prices(tables)}",
            f"- ReLU networks for x^2: {_squares(squares)} They are"
            f" {'' if above else 'NOT '}above what counting pieces proves for their widths.",
            "- PolyNorm's networks have a fixed width, so the size decides the depth:"
            " one point for each size.",
            "",
            "A network of cells is computed in rounds: the sum so far and the variables are carried"
            " by d + 1 units, and each round adds the next cells (`in_rounds`). It is the same"
            " function at any number of rounds, so all that depth does is to take the carrying"
            " units' numbers off those for cells. Of each number of rounds the largest N that fits"
            " is built. The bound holds at every depth, so the optimal rate is reached at any"
            " depth from the constant one of Theorem 3 to a number of layers of the order of the"
            " size. Methods that choose numbers discontinuously may gain by depth; none is built"
            " here.",
            "",
            "## What depth costs",
            "",
            "From one round to the most: x is the factor by which an error grows.",
            "",
            *markdown.table(tables["prices"]),
            "",
            "## Networks",
            "",
            "numbers: how many it may have. The bound in H1 follows from those of values and"
            " derivatives; there is none for PolyNorm.",
            "",
            *markdown.table(rows),
            "",
            "## Squares by ReLU networks",
            "",
            "x^2 on [0, 1] by m levels of p pieces (`folded_square`): p^m pieces in all, by about"
            f" 5 p m numbers. {_pieces(squares)}",
            "",
            *markdown.table(squares),
            "",
            "Plots: plots/depth. Rows: depth.csv.",
        ]
    )


def _prices(tables: Row) -> str:
    """What depth costs where it changes N; series in which it does not say nothing of that."""
    every = tables["prices"]
    told = [row for row in every if len(set(row["N"].split(" to "))) > 1]
    gained = sum(row["sup x"] < 1 - 1e-6 for row in told)
    parts = [f"depth pays in {gained} of the {len(told)} series in which it changes N."]
    for kind in ("poly_relu", "interpolation"):
        own = [row for row in told if row["network"] == kind]
        if own:
            deepest = max(int(row["depth"].split(" to ")[1]) for row in own)
            spans = [f"{_span(own, f'{norm} x')} in {norm}" for norm in ("sup", "h1")]
            parts.append(
                f"{NAMES[kind]}: from one round to the most, up to {deepest} hidden layers, the"
                f" error grows by {' and '.join(spans)}, the bound by {_span(own, 'bound x')}."
            )
    same = [row for row in every if row not in told]
    if same:
        dims = ", ".join(str(d) for d in dict.fromkeys(row["d"] for row in same))
        parts.append(
            f"In {len(same)} other series, of d = {dims}, the largest N that fits is the same with"
            " the most rounds as with one: sizes there are too coarse to show a cost."
        )
    return " ".join(parts)


def _span(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{min(values):.3g} to {max(values):.3g}"


def _squares(squares: Sequence[Row]) -> str:
    parts = []
    for size in dict.fromkeys(row["numbers"] for row in squares):
        own = [row for row in squares if row["numbers"] == size]
        best = min(own, key=lambda row: row["sup"])
        parts.append(
            f"With {size} numbers {own[0]['sup']:.2g} at depth {own[0]['depth']} and"
            f" {best['sup']:.2g} at depth {best['depth']}."
        )
    return " ".join(parts)


def _pieces(squares: Sequence[Row]) -> str:
    """Which number of pieces a level is best at each size."""
    best: dict[int, Row] = {}
    for row in squares:
        best[row["numbers"]] = min(row, best.get(row["numbers"], row), key=lambda each: each["sup"])
    told = [f"p = {row['pieces a level']} with {size} numbers" for size, row in best.items()]
    return f"The error is least for {', '.join(told)}."
