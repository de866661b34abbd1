"""What the studies of constructed networks say of their rows: slopes, shares, prices, verdicts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sobolev import (
    depth,
    depth_program,
    fit,
    fit_report,
    imitate,
    imitate_program,
    intervals,
    necessary,
    normed,
    normed_program,
    rates,
    rates_program,
)
from experiments.sobolev.construction_options import RatesOptions
from experiments.sobolev.options import TrainOptions
from experiments.sobolev.spread import spread
from experiments.sobolev.store import Store
from experiments.sobolev.train import SELECTION_SEED, Standardised, Study
from polycom_jax import approximation as pa
from polycom_jax.approximation.targets import get_target

Row = dict[str, Any]
RESULTS = Path(__file__).resolve().parents[2] / "experiments/results/sobolev"


def power_rows(n: int, d: int, target: str = "waves:9") -> list[Row]:
    """Errors 3 N^-n, slopes one power less, sizes 50 (N + 1)^d, guarantees 2 N^-n."""
    return [
        {
            "n": n, "d": d, "network": "poly_relu", "target": target, "N": cells,
            "size": 50 * (cells + 1) ** d, "sup": 3.0 * cells**-n, "w1": 7.0 * cells ** (1 - n),
            "guarantee": 2.0 * cells**-n,
        }
        for cells in (4, 8, 16)
    ]  # fmt: skip


def test_slopes_are_powers_of_cells_and_of_size_beside_the_theorys():
    sup, w1 = rates.slopes(power_rows(3, 2))
    assert (sup["norm"], w1["norm"]) == ("sup", "w1")
    assert (sup["slope in N"], w1["slope in N"]) == pytest.approx((-3, -2))
    assert (sup["theory"], sup["theory in size"]) == pytest.approx((-3, -3 / 2))
    assert (w1["theory"], w1["theory in size"]) == pytest.approx((-2, -1))
    assert sup["local slopes in N"] == "-3.00, -3.00"
    assert rates.fit([1, 4, 9], [5.0, 10.0, 15.0]) == pytest.approx(0.5)
    # A spline of two derivatives has no better rate, whatever the network uses.
    assert rates.slopes(power_rows(3, 1, "spline:2"))[0]["theory"] == -2


def test_the_logarithm_is_looked_for_in_size_times_theorys_power_of_the_guarantee():
    (row,) = rates.logarithm(power_rows(3, 2))
    # 50 (N + 1)^2 (2 N^-3)^(2/3) is 50 2^(2/3) (1 + 1/N)^2.
    ends = [50 * 2 ** (2 / 3) * (1 + 1 / cells) ** 2 for cells in (4, 16)]
    assert [row["at the largest eps"], row["at the smallest eps"]] == pytest.approx(ends)
    assert row["ratio"] == pytest.approx(ends[1] / ends[0])
    assert row["ratio a node"] == pytest.approx(1)


def test_constants_are_the_error_by_its_power_of_the_cells():
    (row,) = rates.constants([{"n": 2, "N": 10, "sup": 1 / 800}])
    assert row["sup error x N^n"] == pytest.approx(row["theory"]) == 1 / 8
    assert row["ratio"] == pytest.approx(1)


def test_of_other_targets_the_slope_over_theorys_and_the_share_of_the_bound_are_told():
    options = RatesOptions(cells_1d=(4, 8, 16), uneven=(5, 7))
    (row,) = spread(power_rows(3, 1), options)
    assert row["grid"] == "even"
    assert row["slope in N over -n"] == pytest.approx(1)
    assert row["error over the bound"] == "1.5 to 1.5"


@pytest.mark.parametrize(("n", "eps"), [(2, 1e-2), (3, 1e-4)])
def test_numbers_that_are_built_are_those_of_networks_and_reach_the_error(n: int, eps: float):
    built, every, free, must, _ = (necessary.COUNTS[name] for name in necessary.COUNTS)
    cells = next(count for count in range(1, 1000) if pa.spline_bound(n, count) <= eps)
    units = cells + n - 2  # of four numbers each, and one weight or bias in front of f's
    assert (every(n, eps), free(n, eps)) == (4 * units, units + 1)
    assert built(n, eps) == pa.cell_size(n, 1) * (pa.cells_for(eps, n, 1) + 1)
    assert pa.least_error(n, must(n, eps)) <= eps


def test_gaps_are_spans_of_quotients_at_the_smallest_error():
    names, eps = list(necessary.COUNTS), min(necessary.ERRORS)
    rows = [
        {"n": n, "eps": eps, **dict(zip(names, counts, strict=True))}
        for n, counts in ((2, (200, 40, 15, 10, 5)), (3, (90, 50, 16, 10, 2)))
    ]
    told = necessary.gaps([{**rows[0], "eps": 0.1, names[0]: 10**6}, *rows])
    assert "Of the spline 1.5 to 1.6 P depend on f, and all are 4 to 5 P;" in told
    assert "Theorem 3's networks have 9 to 20 P." in told
    assert told.endswith("only known to take P / 2 to 5.")


@pytest.mark.parametrize(
    ("network", "n", "d"), [("poly_relu", 1, 1), ("poly_relu", 1, 2), ("interpolation", 2, 1)]
)
def test_the_numbers_of_a_network_in_rounds_are_its_size(network: str, n: int, d: int):
    target = get_target("waves", order=n, dim=d)
    case = depth.Case(network, n, d, 400, 3, target)
    deep, _, cells, (bound, in_h1) = depth._built(case)
    assert deep.size == depth.numbers(case, cells, 3) <= 400 < depth.numbers(case, cells + 1, 3)
    if network == "interpolation":  # f' is at most 1 / (2 N) from the chord's slope
        assert (bound, in_h1) == pytest.approx((1 / 8 / cells**2, math.hypot(bound, 0.5 / cells)))
    else:
        slopes = [pa.derivative_bound(1, d, cells)] * d
        assert in_h1 == pytest.approx(math.hypot(bound, *slopes))


def test_prices_are_of_the_most_rounds_by_those_of_one():
    names = {"network": "poly_relu", "n": 2, "d": 1, "target": "waves:2", "numbers": 300}
    rows = [
        {**names, "depth": k, "width": 9, "N": 9 - k, "sup": 0.1 * k, "h1": 0.2, "bound": k**2}
        for k in (1, 2, 3)
    ]
    (row,) = depth.prices(rows)
    assert (row["depth"], row["N"]) == ("1 to 3", "8 to 6")
    assert [row[f"{name} x"] for name in ("sup", "h1", "bound")] == pytest.approx([3, 1, 9])


def test_growth_is_in_bits_of_the_error():
    rows = [
        {
            "network": "x", "own_size": 3, "eps": 2.0**-bits, "size": 10 + 7 * bits,
            "weights": 5 + 4 * bits, "sup": 2.0**-bits / bits,
        }
        for bits in (2, 5, 8)
    ]  # fmt: skip
    (row,) = imitate.growth(rows)
    assert (row["size a bit"], row["weights a bit"], row["R^2"]) == pytest.approx((7, 4, 1))
    assert row["largest error / eps"] == pytest.approx(0.5)
    for k, size in enumerate((0.0, 3.0, 0.0)):  # nothing of it lies on a line
        rows[k]["size"] = size
    assert imitate.growth(rows)[0]["R^2"] == pytest.approx(0)


def test_slopes_of_poly_norm_networks_are_in_the_depth():
    rows = [
        {
            "target": "waves:3", "n": 3, "d": 2, "coefficients": "square", "depth": cells**2,
            "sup": 0.5 * cells**-3.0, "bound": cells**-3.0 * (1 + (cells == 8)),
        }
        for cells in (2, 4, 8)
    ]  # fmt: skip
    (row,) = normed.slopes(rows)
    assert row["slope of the sup in the depth"] == pytest.approx(row["theory"]) == -1.5
    assert row["largest error / bound"] == pytest.approx(0.5)


def stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


SAID: dict[str, Callable[[dict[str, Any]], str]] = {
    "rates": lambda tables: rates_program.text(tables["rows"], tables, "-"),
    "imitate": lambda tables: imitate_program.text(tables["rows"], "-"),
    "normed": lambda tables: normed_program.text(tables["rows"], tables, "-"),
    "depth": lambda tables: depth_program.text(tables, "-"),
}


@pytest.mark.parametrize(
    ("study", "table", "column", "words"),
    [
        ("rates", "rows", "sup", "The errors are NOT within what is guaranteed"),
        ("rates", "rows", "w1", "those of derivatives are NOT within theirs"),
        ("rates", "rows", "size", "The sizes are NOT the integer formula"),
        ("imitate", "rows", "sup", "are NOT within eps"),
        ("normed", "rows", "sup", "measured errors are NOT within the bound"),
        ("normed", "imitations", "sup", "Imitations are NOT within the error asked for"),
        ("depth", "rows", "sup", "All sup errors are NOT within their bounds"),
        ("depth", "rows", "h1", "those in H1 are NOT within theirs"),
        ("depth", "squares", "sup", "All sup errors are NOT within their bounds"),
    ],
)
def test_one_error_beyond_its_bound_is_told(study: str, table: str, column: str, words: str):
    tables = stored(study)
    assert "NOT" not in SAID[study](tables)
    guarded = [r for r in tables[table] if column in r and (column != "h1" or "h1 bound" in r)]
    guarded[-1][column] *= 1000
    assert words in SAID[study](tables)


def test_theorys_rate_in_a_figure_of_fits_is_by_smoothness_norm_and_dimension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Any] = []

    def draw(path: Path, panels: Any, *words: Any, **look: Any) -> None:
        drawn.append(panels)

    monkeypatch.setattr(fit_report.figures, "draw", draw)
    means = [
        {"parameters": size, "size": size, "activation": "relu", "target": "waves:3"}
        | {f"{metric}{end}": 0.1 for metric in ("l2", "h1") for end in ("", "_low", "_high")}
        for size in (100, 1600)
    ]
    options = TrainOptions(targets=("waves:3",), dim=2)
    for metric, slope in (("l2", -3 / 2), ("h1", -2 / 2)):
        fit_report.draw(Store(tmp_path, "train"), options, means, metric, "-")
        (theory,) = [line for line in drawn[-1][0].lines if line.reference]
        assert theory.y[0] == pytest.approx(0.1)
        assert theory.y[-1] / theory.y[0] == pytest.approx(16**slope)


def test_intervals_that_overlap_the_best_ones_are_named():
    rows = [
        {"activation": "a", "low": 0.8, "high": 1.0},
        {"activation": "b", "low": 0.9, "high": 1.3},
        {"activation": "c", "low": 1.1, "high": 1.4},
    ]
    assert fit_report._overall_sentence(rows).endswith("; the intervals of b overlap its own.")
    assert "overlaps no other's" in fit_report._overall_sentence([rows[0], rows[2]])


def test_means_over_seeds_are_geometric_and_ranks_are_over_that_of_all_networks():
    errors = {"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0], "c": [4.0, 8.0, 16.0]}
    cells = [
        {
            "activation": name, "size": 1, "parameters": 9, "learning_rate": 0.1,
            "runs": [
                {"target": "t", "seed": s, "sup": e, "l2": e, "h1": e} for s, e in enumerate(own)
            ],
        }
        for name, own in errors.items()
    ]  # fmt: skip
    first = intervals.summary(cells)[0]
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert (first["l2"], first["l2_high"]) == pytest.approx((2, 2 * math.exp(half)), rel=1e-5)
    ratios = [row["ratio"] for row in intervals.overall(cells, "l2")]
    assert ratios == pytest.approx([1 / 2, 1, 2])


def test_targets_are_shifted_and_scaled_to_mean_0_and_variance_1():
    target = get_target("runge", order=2, dim=1)
    middles = (np.arange(4096) + 0.5)[:, None] / 4096
    values = np.asarray(target(jnp.asarray(middles)), np.float64)
    found = Standardised.of(target)
    assert (found.mean, found.deviation) == pytest.approx((values.mean(), values.std()), rel=1e-4)


def test_rates_are_tried_on_other_targets_with_other_seeds_and_judged_by_their_own_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = TrainOptions(
        targets=("spline:2", "waves:2"), selection=("bumps:2", "runge:2"), seeds=8, dim=1
    )
    seen: list[fit.Runs] = []

    def errors(self: Study, network: Any, params: Any, runs: fit.Runs) -> list[Row]:
        seen.append(runs)
        return [{"l2": float(rate)} for rate in np.asarray(runs.rates)]

    monkeypatch.setattr(Study, "errors", errors)
    monkeypatch.setattr(Study, "_fit", lambda self, name, how, runs, tell: fit.State({}, None))
    how: Any = fit.Fit(None, 1, 1)  # pyright: ignore[reportArgumentType]
    stop: Any = None
    study = Study(options, Store(tmp_path, "train"), stop, lambda share, doing: None)
    found = study._try("-", how, [0.25, 0.5], lambda share, doing: None)
    assert [(row["learning_rate"], row["l2"]) for row in found] == [(0.25, 0.25), (0.5, 0.5)]
    assert {*np.asarray(seen[0].targets).tolist()} == {2, 3}  # behind those that are fitted
    assert np.asarray(seen[0].seeds).min() == SELECTION_SEED


def test_a_rate_rises_over_a_twentieth_of_the_steps_and_falls_by_a_cosine_to_zero():
    steps = jnp.array([0, 1, 2, 11, 21, 40])
    wanted = [0.5, 1, 1, 0.5 * (1 + math.cos(math.pi * 9 / 38)), 0.5, 0]
    np.testing.assert_allclose(fit.share_of_peak(steps, 40), wanted, atol=1e-6)
