"""What the slopes of constructed networks depend on: other targets, other N."""

from collections.abc import Sequence

from experiments.sobolev.construction_options import RatesOptions
from experiments.sobolev.rates import Case, Row, fit, series
from polycom_jax.approximation.targets import get_target


def spread_cases(options: RatesOptions) -> list[Case]:
    """d = 1: the study's target with uneven cells, and others with even and uneven ones."""
    found = []
    for name in (options.target, *options.spread):
        grids = (options.uneven,) if name == options.target else (options.cells(1), options.uneven)
        found += [
            Case("poly_relu", n, 1, cells, get_target(name, order=n, dim=1))
            for n in options.orders
            for grid in grids
            for cells in grid
        ]
    return found


def spread(rows: Sequence[Row], options: RatesOptions) -> list[Row]:
    """One row an order, target and grid: the slope over theory's, and errors over the bound."""
    found = []
    for (n, _, _, target), own in series(rows):
        for grid, cells in (("even", options.cells(1)), ("uneven", options.uneven)):
            points = [row for row in own if row["N"] in cells and row["sup"] > 0]
            if len(points) < 2:
                continue
            share = [row["sup"] / row["guarantee"] for row in points]
            found.append(
                {
                    "n": n,
                    "target": target.split(":")[0],
                    "N": ", ".join(str(row["N"]) for row in points),
                    "slope in N over -n": fit(
                        [row["N"] for row in points], [row["sup"] for row in points]
                    )
                    / -n,
                    "error over the bound": f"{min(share):.3g} to {max(share):.3g}",
                    "grid": grid,
                }
            )
    return found
