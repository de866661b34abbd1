"""The program `python -m experiments.sobolev rates`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sobolev import figures, markdown, necessary
from experiments.sobolev.construction_options import RatesOptions
from experiments.sobolev.figures import Line, Panel
from experiments.sobolev.rates import (
    Case,
    cases,
    check,
    constant_cases,
    constants,
    logarithm,
    rates,
    saturation_cases,
    series,
    slopes,
)
from experiments.sobolev.spread import spread, spread_cases
from experiments.sobolev.store import Store, about
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display

Row = dict[str, Any]

NAMES = {
    "poly_relu": "PolyReLU (Theorem 3)",
    "relu": "ReLU (Yarotsky)",
    "interpolation": "linear interpolation",
    "spline": "spline, one layer of relu^(n-1)",
    "poly_relu_spline": "PolyReLU on splines",
}
THEORY = "Dashed: theory's slope, through the last point."


def run(options: RatesOptions, workdir: Path, command: str, display: Display) -> None:
    """Builds, measures, writes, and says what to look at."""
    main, saturating, others = cases(options), saturation_cases(options), spread_cases(options)
    known = constant_cases(options)
    check(options, [*main, *saturating, *others, *known])
    store = Store(workdir, "rates")
    store.open(options)
    pace = Pace(display)
    measured = partial(rates, memory=options.memory)
    ends = np.cumsum([len(main), len(saturating), len(others)])
    shares = [0.0, *(ends / ends[-1])]

    def part(k: int, todo: Sequence[Case]) -> list[Row]:
        low, high = shares[k : k + 2]
        return measured(todo, lambda s, doing: pace.tell(low + (high - low) * s, doing))

    rows, saturation, others_rows = part(0, main), part(1, saturating), part(2, others)
    exact = measured(known, lambda _, doing: pace.tell(1.0, doing))
    display.stop()
    tables = {
        "slopes": slopes(rows),
        "logarithm": logarithm(rows),
        "constants": constants(exact),
        "saturation": slopes(saturation),
        "spread": spread(others_rows, options),
        "necessary": necessary.necessary(options.orders),
    }
    store.write_rows("rates", rows)
    store.write_rows("saturation", saturation)
    store.write_rows("spread", others_rows)
    every = {"rows": rows, "saturation_rows": saturation, "spread_rows": others_rows}
    store.write_json("rates", command, every | tables)
    draw(store, options, rows, saturation)
    if bounds := necessary.panels(tables["necessary"]):
        title = "Numbers that are built, and that are necessary"
        figures.draw(store.plots / "rates-necessary", bounds, title, len(bounds), shared="y")
    display.note(store.write_report(text(rows, tables, command)))
    other = "waves" if options.target != "waves" else "runge"
    display.note(
        f"Next:\n  python -m experiments.sobolev rates --target {other}"
        f" --out {workdir}-{other}\n  python -m experiments.sobolev imitate"
    )


def draw(
    store: Store, options: RatesOptions, rows: Sequence[Row], saturation: Sequence[Row]
) -> None:
    """Errors against N and size, the logarithm, the norms of splines, saturation."""
    for axis, label in (("N", "cells on an axis N"), ("size", "size (nonzero parameters)")):
        panels = [
            Panel(f"d = {d}", _by_order(rows, d, axis), label, "sup error") for d in options.dims
        ]
        title = "Theorem 3: error of PolyReLU networks"
        path = store.plots / f"rates-{axis}"
        figures.draw(path, panels, title, len(panels), note=THEORY, shared="y")
    panels = [
        Panel(
            f"n = {n}, d = {d}",
            [
                Line(
                    NAMES[network],
                    [1 / row["guarantee"] for row in own],
                    [row["size"] * row["guarantee"] ** (d / n) for row in own],
                )
                for (n_, d_, network, _), own in series(rows)
                if (n_, d_) == (n, d) and network != "poly_relu_spline"
            ],
            "1 / eps (guaranteed)",
            "size x eps^(d/n)",
        )
        for d in options.dims
        if d < 3
        for n in options.orders
    ]
    if panels:
        title = "Size by theory's power of the error"
        note = "A flat line needs no logarithm."
        path = store.plots / "rates-logarithm"
        figures.draw(path, panels, title, len(options.orders), note=note)
    panels = [
        Panel(
            f"n = {n}, d = {d}",
            [
                line
                for k, norm in enumerate(("sup", "w1", "w2"))
                if norm in own[0]
                for line in _with_theory(
                    f"W^({k},inf)", [r["N"] for r in own], [r[norm] for r in own], k - n
                )
            ],
            "cells on an axis N",
            "error",
        )
        for (n, d, network, _), own in series(rows)
        if network == "poly_relu_spline"
    ]
    if panels:
        title = "Beyond the paper: a C^2 network by cubic splines"
        path = store.plots / "rates-spline"
        figures.draw(path, panels, title, len(options.orders), note=THEORY, shared="y")
    lines = [
        line
        for (n, _, _, _), own in series(saturation)
        for line in _with_theory(
            f"degree {n - 1}",
            [row["N"] for row in own],
            [row["sup"] for row in own],
            -min(n, 2),
        )
    ]
    panel = Panel("d = 1, |f''| = 1", lines, "cells N", "sup error")
    title = "Higher degrees gain no rate on W^(2,inf)"
    figures.draw(store.plots / "rates-saturation", [panel], title, note=THEORY)


def _by_order(rows: Sequence[Row], d: int, axis: str) -> list[Line]:
    lines = []
    for (n, d_, network, _), own in series(rows):
        if d_ == d and network == "poly_relu":
            x, y = [row[axis] for row in own], [row["sup"] for row in own]
            lines += _with_theory(f"n = {n}", x, y, -n / (d if axis == "size" else 1))
    return lines


def _with_theory(label: str, x: list[float], y: list[float], exponent: float) -> list[Line]:
    return [Line(label, x, y), figures.power_line(x, (x[-1], y[-1]), exponent, "theory's slope")]


def text(rows: Sequence[Row], tables: Row, command: str) -> str:
    """The report."""
    own = [row for row in tables["slopes"] if row["network"] == "poly_relu"]
    formula = all(row["size"] == row["formula"] for row in rows if "formula" in row)
    kept = all(row["sup"] <= row["guarantee"] * (1 + 1e-9) for row in rows)
    slopes_kept = all(
        row[norm] <= row[f"{norm} guarantee"] * (1 + 1e-9)
        for row in rows
        for norm in ("w1", "w2")
        if f"{norm} guarantee" in row
    )
    return "\n".join(
        [
            "# Rates of constructed networks",
            "",
            *markdown.facts(about(command)),
            "",
            f"- The sizes {_are(formula)} the integer formula c(n, d) (N + 1)^d, exactly.",
            f"- The errors {_are(kept)} within what is guaranteed for the unit ball, and those of"
            f" derivatives {_are(slopes_kept)} within theirs.",
            f"- Slopes of the sup error in N over theory's -n: {_span(own, 'slope in N', 'theory')}"
            f" (PolyReLU, all n and d) for {own[0]['target'].split(':')[0]}, which is made for"
            f" grids of powers of 2. For others and other N, d = 1: {_spread(tables['spread'])}."
            " At these N such slopes are pre-asymptotic; the bound holds for all.",
            "- Slopes in size over theory's -n/d, d = 1 and 2:"
            f" {_span([r for r in own if r['d'] < 3], 'slope in size', 'theory in size')}. In d = 3"
            " the (N + 1)^d nodes are far from N^d at sizes that fit, so only N is compared.",
            "- Optimality, where claimed, is for parameters that depend continuously on the target"
            " (DeVore, Howard, Micchelli 1989).",
            "",
            "## Slopes",
            "",
            "In W^{k,inf} theory's rate is n - k. Rows without a theory slope below 0 need not"
            " converge.",
            "",
            *markdown.table(tables["slopes"]),
            "",
            "## Other targets, other N",
            "",
            "d = 1, sup error. even: the N of the study; uneven: no powers of 2, so that the kinks"
            " of a target made for a grid lie off it.",
            "",
            *markdown.table(tables["spread"]),
            "",
            "## Constants in d = 1",
            "",
            "For x^n / n!, whose n-th derivative is 1: 1/3, 1/8, 1/162, 1/384 for n = 1, 2, 3, 4.",
            "",
            *markdown.table(tables["constants"]),
            "",
            "## What is necessary",
            "",
            "Numbers for an error on the unit ball of W^{n,inf}([0, 1]). Theorem 3's networks and"
            " splines have so many; a method whose numbers depend continuously on f needs at least"
            " (K_n / eps)^(1/n) / pi (Bernstein widths); a network of the same depth whose numbers"
            " are chosen in any way needs at least the last column (pseudo-dimension)."
            " A spline of degree n - 1 is one hidden layer of relu^(n-1); n = 3 is squared ReLU"
            " alone, so the optimal rate does not favour PolyReLU over it.",
            "",
            *([necessary.gaps(tables["necessary"]), ""] if tables["necessary"] else []),
            *markdown.table(tables["necessary"]),
            "",
            "## Largest weights",
            "",
            "The largest weight, bias or coefficient at the largest N. Those of splines stay below"
            " a constant for all N, so that a bound on weights costs no rate.",
            "",
            *markdown.table(_weights(rows)),
            "",
            "## The logarithm",
            "",
            "size x eps^(d/n) at the largest and the smallest guaranteed eps. The (N + 1)^d nodes"
            " fall to N^d as (1 + 1/N)^d; a node, PolyReLU is flat, and a ratio above 1 is a"
            " logarithm.",
            "",
            *markdown.table(tables["logarithm"]),
            "",
            "## Saturation",
            "",
            "A target in W^{2,inf} and no better (|f''| = 1): slopes in N for Taylor polynomials of"
            " degree n - 1. Beyond n = 2 nothing is gained.",
            "",
            *markdown.table(
                [
                    {key: row[key] for key in ("n", "norm", "slope in N", "local slopes in N")}
                    for row in tables["saturation"]
                    if row["norm"] == "sup"
                ]
            ),
            "",
            "Plots: plots/rates-*. Rows: rates.csv, saturation.csv, spread.csv.",
        ]
    )


def _weights(rows: Sequence[Row]) -> list[Row]:
    """The last row of each series in d = 1."""
    return [
        {
            "network": NAMES[network],
            "n": n,
            "N": own[-1]["N"],
            "depth": own[-1]["depth"],
            "size": own[-1]["size"],
            "largest weight": own[-1]["largest weight"],
        }
        for (n, d, network, _), own in series(rows)
        if d == 1
    ]


def _spread(rows: Sequence[Row]) -> str:
    shares = [row["slope in N over -n"] for row in rows]
    return f"{min(shares):.2f} to {max(shares):.2f}" if shares else "none"


def _are(condition: bool) -> str:
    return "are" if condition else "are NOT"


def _span(rows: Sequence[Row], slope: str, theory: str) -> str:
    shares = [row[slope] / row[theory] for row in rows if row["norm"] == "sup"]
    return f"{min(shares):.3f} to {max(shares):.3f}" if shares else "none"
