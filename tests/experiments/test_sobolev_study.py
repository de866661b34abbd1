"""The studies of approximation: small runs end to end, what they conclude, how they refuse."""

import csv
import itertools
import json
import math
import signal
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.signals import StopRequest
from experiments.sobolev import choice, depth_program, fit, intervals, rates
from experiments.sobolev.__main__ import STUDIES, main
from experiments.sobolev.construction_options import ImitateOptions, RatesOptions
from experiments.sobolev.depth_program import ROUNDING
from experiments.sobolev.mlp import mlp_of_size
from experiments.sobolev.options import QUICK_TRAIN, TrainOptions
from polycom_jax import ACTIVATIONS, InputError

TRAIN_WORDS = (
    "--quick --activations relu swiglu --sizes 40 --steps 12 --points 64 --batch-size 16 --cells 1"
    " --dim 1 --targets spline:1 waves:2 --seeds 2 --learning-rates 1e-3 3e-2 1.0 30.0"
)
TRAIN = TRAIN_WORDS.split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    assert main(["train", *TRAIN, "--out", str(workdir)]) == 0
    return workdir


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_train_writes_one_row_a_run_a_report_and_plots(trained: Path):
    rows = read(trained / "train.csv")
    assert len(rows) == 2 * 2 * 2
    assert {row["activation"] for row in rows} == {"relu", "swiglu"}
    for row in rows:
        assert 0 < float(row["l2"]) <= float(row["h1"])
        assert float(row["l2"]) <= float(row["sup"])
    record = json.loads((trained / "train.json").read_text())
    assert "train --quick" in record["about"]["command"]
    assert {"processor", "cores", "commit"} <= set(record["about"])  # where the numbers are from
    assert f"commit {record['about']['commit']}" in (trained / "train.md").read_text()
    for cell in ("40-relu", "40-swiglu"):
        tried = json.loads((trained / "cells" / f"{cell}.json").read_text())["selection"]
        best = choice.best(tried, "l2")
        assert 0 < best < len(tried) - 1  # never at the edge
    assert (trained / "plots" / "train-l2.pdf").stat().st_size > 1000
    assert "not told apart" in (trained / "train.md").read_text()


def test_finished_cells_are_not_fitted_again(trained: Path, monkeypatch: pytest.MonkeyPatch):
    def no(*arguments):
        raise AssertionError("fitted again")

    monkeypatch.setattr(fit, "_advance", no)
    before = (trained / "train.csv").read_text()
    assert main(["train", *TRAIN, "--out", str(trained)]) == 0
    assert (trained / "train.csv").read_text() == before


@pytest.mark.slow
def test_a_study_that_is_stopped_amid_a_fit_ends_as_one_that_is_not(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    due, asked = StopRequest.due, itertools.count()

    def at_the_18th(self: StopRequest, step: int) -> bool:
        if next(asked) == 17:  # of two fits of 12 steps: behind step 6 of the second
            self.number = signal.SIGTERM
        return due(self, step)

    monkeypatch.setattr(StopRequest, "due", at_the_18th)
    command = ["train", *TRAIN, "--out", str(tmp_path)]
    assert main(command) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "state").glob("*/*")] == ["6"]
    assert main(command) == 0
    assert (tmp_path / "train.csv").read_bytes() == (trained / "train.csv").read_bytes()
    # Twelve steps of each fit, and none twice: two cells of two fits.
    assert next(asked) == 4 * 12


def test_other_options_are_refused_in_a_used_folder(trained: Path, capsys):
    assert main(["train", *TRAIN, "--steps=13", "--out", str(trained)]) == 2
    assert "steps: 12 there, 13 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rate"], "Did you mean 'rates'"),
        (["train", "--dim", "0"], "dim=0"),
        (["train", "--seeds", "1"], "seeds=1"),
        (["train", "--sizes", "3"], "too few"),
        (["train", "--sizes", "1000000000"], "too many for relu"),
        (["train", "--targets", "runge:2", "--selection", "runge:2"], "among the targets"),
        (["normed", "--dims", "3"], "dims=3 must be at most 2"),
        (["normed", "--errors", "0.1", "1e-9"], "error=1e-09"),
        (["normed", "--targets", "wave"], "Did you mean 'waves'"),
        (["normed", "--degrees-2d", "8", "4"], "ascending"),
        (["train", "--targets", "wave:2"], "Did you mean 'waves'"),
        (["train", "--learning-rates", "0.1", "0.2"], "four or more"),
        (["train", "--sobolev.step", "1"], "Did you mean '--steps'"),
        (["train", "--sobolev.dim", "0"], "dim=0"),
        (["train", "--beside", "nowhere.csv"], "there is no such file"),
        (["train", "--beside", "pyproject.toml"], "must be the CSV of a study"),
        (["depth", "--dims", "3"], "dims=3 must be at most 2"),
        (["depth", "--rounds", "2", "4"], "must begin with 1"),
        (["depth", "--sizes", "10"], "sizes=10"),
        (["train", "--sizes", "10000000"], "more than memory=1073741824"),
        (["train", "--points", "1000000000"], "more than memory=1073741824"),
        (["refine", "--points", "1000000000"], "more than memory=1073741824"),
        (["refine", "--layers", "60"], "too few"),
        (["refine", "--sizes", "50"], "the smallest has 62"),
        (["refine", "--targets", "spline:2", "waves:3"], "must have the same n"),
        (["rates", "--orders", "0"], "orders=0"),
        (["rates", "--dims", "0"], "dims=0"),
        (["rates", "--cells-2d", "8", "100000"], "the limit is"),
        (["rates", "--dims", "2", "--cells-1d", "8", "10000000"], "the limit is"),
        (["rates", "--cells-2d", "2", "4"], "begin with a larger N"),
        (["imitate", "--eps", "1.5", "0.1"], "eps=1.5"),
    ],
)
def test_bad_input_is_one_line_before_any_work(words, message, capsys, tmp_path: Path):
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "sobolev." not in error.replace("--sobolev.step", "")  # a setting is named as its flag
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()  # the corrected command finds no other options there


@pytest.mark.parametrize("study", STUDIES)
def test_every_option_is_in_the_help_and_said_what_it_is_for(study: str, capsys):
    assert main([study, "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())  # tyro wraps lines
    options = STUDIES[study].default.sobolev
    texts = [kind.__doc__ or "" for kind in type(options).__mro__]
    for field in fields(options):
        assert f"--{field.name.replace('_', '-')}" in shown
        assert any(f"        {field.name}: " in text for text in texts)


def test_every_study_has_a_quick_form_of_valid_options():
    for study in STUDIES.values():
        assert type(study.quick) is type(study.default)
        assert study.quick != study.default
    assert TrainOptions().seeds >= 8  # for intervals
    assert set(TrainOptions().activations) <= set(ACTIVATIONS)


@pytest.mark.slow
def test_rates_are_the_theorys(tmp_path: Path):
    words = "--dims 1 --orders 2 --cells-1d 8 16"
    assert main(["rates", *words.split(), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "rates.json").read_text())
    of = {(row["network"], row["norm"]): row for row in record["slopes"]}
    # Of the ReLU network the guarantee is checked below: its products, within another half of eps,
    # come nearer as N grows than they must, so that its error does not follow a power.
    for network in ("poly_relu", "poly_relu_spline", "interpolation"):
        assert of[network, "sup"]["slope in N"] == pytest.approx(-2, rel=0.05)
    assert of["poly_relu", "w1"]["slope in N"] == pytest.approx(-1, rel=0.05)
    assert of["poly_relu", "sup"]["slope in size"] == pytest.approx(
        -2 * math.log(2) / math.log(17 / 9), rel=0.05
    )  # the size is c (N + 1)
    ratios = {row["network"]: row["ratio a node"] for row in record["logarithm"]}
    assert ratios["poly_relu"] == pytest.approx(1, rel=1e-12)  # float64
    assert ratios["relu"] > 1.1
    (constant,) = record["constants"]
    assert constant["sup error x N^n"] == pytest.approx(1 / 8, rel=0.01)
    for row in record["rows"]:
        # Interpolation attains its bound; 1e-12 is for float64's rounding.
        assert row["sup"] <= row["guarantee"] * (1 + 1e-12)
    for row in read(tmp_path / "rates.csv"):
        assert row["formula"] in ("", row["size"])
    assert "are the integer formula" in (tmp_path / "rates.md").read_text()


def test_nothing_is_guaranteed_of_a_target_outside_of_the_ball():
    options = RatesOptions(orders=(2, 3), dims=(1,), cells_1d=(4, 8))
    inside, _, outside, _ = rates.rates(rates.saturation_cases(options), lambda share, what: None)
    assert {"guarantee", "w1 guarantee"} <= inside.keys()  # n = 2, and the target's is 2
    assert not {"guarantee", "w1 guarantee"} & outside.keys()


def test_networks_are_built_within_the_memory_that_was_asked_for():
    # A limit above the library's own was refused in the middle of the study.
    options = RatesOptions(orders=(1,), dims=(1,), memory=2000)
    (case, *_) = rates.cases(options)
    with pytest.raises(InputError, match="the limit is"):
        rates.build(case, memory=100)
    rates.build(case, memory=2000)


@pytest.mark.slow
def test_depth_costs_cells_but_for_squares_of_relus(tmp_path: Path):
    words = "--sizes 300 --orders 2 --dims 1 --targets spline --rounds 1 4 --squares 100"
    assert main(["depth", *words.split(), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "depth.json").read_text())
    assert {row["network"] for row in record["rows"]} == {"poly_relu", "interpolation", "poly_norm"}
    for row in [*record["rows"], *record["squares"]]:
        assert row["size"] <= row["numbers"]
        # Interpolation attains its bound, and a square its formula.
        assert row["sup"] <= row["bound"] + ROUNDING
    for row in record["prices"]:
        assert row["sup x"] > 1
    for row in record["squares"]:
        assert row["sup"] == pytest.approx(row["bound"], rel=1e-6)  # by the formula
        assert row["sup"] >= row["least for these widths"]
    shallow, *_, deep = record["squares"]
    assert deep["sup"] < shallow["sup"] / 10
    assert "NOT" not in (tmp_path / "depth.md").read_text()


def test_depth_is_judged_where_it_changes_what_is_built():
    def price(d: int, cells: str, factor: float) -> dict[str, object]:
        costs = {f"{name} x": factor for name in ("sup", "h1", "bound")}
        return {"network": "poly_relu", "d": d, "depth": "3 to 12", "N": cells, **costs}

    squares = [
        {"numbers": 50, "pieces a level": p, "sup": sup, "depth": 1, "bound": 1.0}
        | {"least for these widths": 0.0}
        for p, sup in ((5, 0.3), (3, 0.1), (2, 0.2))
    ]
    prices = [price(1, "15 to 13", 1.5), price(1, "9 to 8", 1.25), price(2, "3 to 3", 1.0)]
    text = depth_program.text({"rows": [], "squares": squares, "prices": prices}, "command")
    assert "depth pays in 0 of the 2 series in which it changes N." in text
    assert "the error grows by 1.25 to 1.5 in sup" in text
    assert "In 1 other series, of d = 2, the largest N that fits is the same" in text
    assert "The error is least for p = 3 with 50 numbers." in text


@pytest.mark.slow
def test_imitation_costs_a_logarithm_but_for_a_relu(tmp_path: Path):
    words = "--eps 1e-1 1e-3 1e-5 --iterates 1"
    assert main(["imitate", *words.split(), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "imitate.json").read_text())
    for row in record["rows"]:
        assert row["sup"] <= row["eps"]
        assert row.get("pieces", math.inf) >= row.get("fewest_pieces", 0)
    by_name = {row["network"]: row for row in record["growth"]}
    assert by_name["relu (a_1 = 1)"]["size a bit"] == 0
    assert by_name["relu^2"]["size a bit"] > 1
    assert by_name["relu^2"]["R^2"] > 0.98


def test_a_fit_in_parts_is_the_fit_in_one(tmp_path: Path):
    mlp = mlp_of_size("poly_relu", 40, dim=1, layers=2)
    runs = fit.Runs.of([(0.01, 0, 0), (0.03, 1, 5)])
    x = jnp.linspace(0, 1, 64)[:, None]
    data = fit.Data(x, jnp.stack([x[:, 0], jnp.sin(7 * x[:, 0])]))
    how = fit.Fit(mlp, steps=10, batch_size=8)
    whole = how.advance(how.start(runs), runs, data, 0, 10)
    parts = how.advance(how.start(runs), runs, data, 0, 4)
    parts = how.advance(parts, runs, data, 4, 10)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    # Runs do not see each other.
    alone = fit.Runs.of([(0.03, 1, 5)])
    single = how.advance(how.start(alone), alone, data, 0, 10)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(single.params), strict=True):
        # float32, ten steps: batched and single products round differently.
        np.testing.assert_allclose(a[1], b[0], rtol=1e-4, atol=1e-5)


def test_errors_beside_anothers_are_paired_by_seed():
    noise = [0.1, 3.0, 0.7, 20.0]  # the same for both: it leaves the ratio alone
    cells = [
        {
            "activation": name,
            "size": 10,
            "runs": [
                {"target": "waves:2", "seed": s, "sup": factor * e, "l2": factor * e, "h1": e}
                for s, e in enumerate(noise)
            ],
        }
        for name, factor in (("a", 2.0), ("b", 1.0))
    ]
    for metric, ratio in (("l2", 2.0), ("h1", 1.0)):
        assert intervals.beside(cells, "b", metric)["a"] == pytest.approx((ratio,) * 3)


def test_intervals_are_students():
    logs = np.log([1.0, 2.0, 4.0])
    mean, low, high = intervals.interval(logs)
    assert mean == pytest.approx(2)
    half = 4.302653 * math.log(2) / math.sqrt(3)  # t(2) at 97.5 %, deviation log 2
    assert (low, high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)), rel=1e-5)
    assert intervals.interval(logs, comparisons=5)[1] < low
    assert intervals.interval([0.0, math.inf]) == (math.inf, 0.0, math.inf)


def cells(errors: dict[str, list[float]]) -> list[dict]:
    return [
        {
            "activation": name,
            "size": 1,
            "runs": [
                {"target": "t", "seed": seed, "sup": e, "l2": e, "h1": e}
                for seed, e in enumerate(values)
            ],
        }
        for name, values in errors.items()
    ]


def test_contests_tell_apart_what_differs_for_every_seed():
    # The seeds spread by 10, but b is always twice a; c is a with noise.
    a = [1.0, 10.0, 0.1, 3.0]
    found = cells({"a": a, "b": [2.0 * e + 0.01 * e for e in a], "c": [1.2, 9.0, 0.11, 2.9]})
    (row,) = intervals.contests(found, "l2")
    assert (row["best"], row["not_told_apart"]) == ("a", ["c"])
    ranks = intervals.overall(found, "l2")
    assert [r["activation"] for r in ranks] == ["a", "c", "b"]
    assert ranks[2]["ratio"] / ranks[0]["ratio"] == pytest.approx(2.01)


def test_options_refuse_by_exception():
    with pytest.raises(InputError, match="descending"):
        ImitateOptions(eps=(0.1, 0.2))
    with pytest.raises(InputError, match="iterates=0"):
        ImitateOptions(iterates=(0,))
    with pytest.raises(InputError, match="ascending"):
        RatesOptions(cells_1d=(16, 8))
    with pytest.raises(InputError, match="repeats"):
        replace(QUICK_TRAIN, activations=("relu", "relu"))
