"""The suite card: its parts, what it calls a failure, and all of it in small."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import card, card_runs, card_speed, card_values
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell
from polycom_jax.table import ACTIVATIONS, get_activation

QUICK = Options(suites=("card",), quick=True, activations=("poly_norm", "swiglu"), rounds=2)


def quiet(text: str) -> None:
    del text


def test_its_parts_and_their_order():
    names = [case.name for case in card.cases(Options(suites=("card",)))]
    assert names == [
        "values of activations",
        "values of attention, grouped products, blocks",
        "bandwidth of dense_1b forward",
        "bandwidth of dense_1b backward",
        "step of dense-110m",
        "step of dense-1b",
        "peers: poly_norm dense_1b both",
        "a deterministic run, twice",
        "moe-tiny trains",
        "the default run beside the CPU's",
    ]
    assert all(case.guarded for case in card.cases(QUICK))


def test_a_part_that_fails_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def breaks(tell: Tell) -> Result:
        raise RuntimeError("out of\nmemory")

    cases = [
        Case("card", "first", breaks, guarded=True),
        Case("card", "second", lambda tell: Result("card", "second", ()), guarded=True),
    ]
    monkeypatch.setattr(card, "cases", lambda options: cases)
    out = tmp_path / "out"
    assert benchmark.main(["card", "--out", str(out)]) == 1
    first, second = json.loads((out / "results.json").read_text())["results"]
    assert first["failures"] == ["RuntimeError: out of memory"]
    assert (second["case"], second["failures"]) == ("second", [])
    assert "**FAILED**: RuntimeError: out of memory" in (out / "results.md").read_text()
    assert "about 0 s left" in capsys.readouterr().out


def test_without_a_guard_an_exception_ends_the_benchmark():
    def breaks(tell: Tell) -> Result:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        Case("ops", "one", breaks).result(quiet)


@pytest.mark.parametrize(("error", "failures"), [(0.0, 0), (1e-5, 0), (0.1, 1), (np.nan, 1)])
def test_a_kernel_that_is_off_is_a_failure(error: float, failures: int):
    x = np.random.default_rng(0).standard_normal((4, 8))
    check = card_values.Check("tanh", lambda x: jnp.tanh(x) + error, jnp.tanh, (x,))
    options = Options(suites=("card",), dtype="float32")
    result = card_values._compared("one", iter([check]), options, quiet)
    assert len(result.failures) == failures
    assert result.rows[0].numbers["gradients off by"] < 1e-5


def test_values_are_those_of_every_row_of_the_table():
    checks = list(card_values._activation_checks(Options(suites=("card",), quick=True)))
    assert {check.name.partition(" ")[0] for check in checks} == set(ACTIVATIONS)
    for check in checks:
        if "[" in check.name:
            continue  # a version, which may not be of this machine
        y, *gradients = jax.eval_shape(partial(card_values._both, check.f), *check.arguments)
        assert y.shape == card_values.QUICK_SHAPE
        assert len(gradients) == len(check.arguments)


def test_speeds_are_those_of_every_row_of_the_table(monkeypatch: pytest.MonkeyPatch):
    def measured(contestants: Any, *words: Any) -> dict[str, list[float]]:
        return {name: [1.0] for name, shape in contestants if shape == least.shape}

    def compiled(function: Any, which: str) -> tuple[Any, Any]:
        return None, (function.name, jax.eval_shape(function.f, *function.arguments).shape)

    monkeypatch.setattr(card_speed, "measure", measured)
    monkeypatch.setattr(card_speed._Measured, "_predict", lambda *words: None)
    monkeypatch.setattr(card_speed.JaxFunction, "compiled", compiled)
    whole = [spec for spec in card_speed.ARG_SPECS if spec.shape[-1] % 64 == 0]
    least = min(whole, key=lambda spec: math.prod(spec.shape))
    result = card_speed.passes(Options(suites=("card",)), least.name, "forward", quiet)
    assert result.failures == ()
    assert {row.name for row in result.rows} == set(ACTIVATIONS)


def test_a_shape_that_groups_do_not_divide_is_no_failure_of_the_card(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(card_speed._Measured, "add", lambda *words: None)
    result = card_speed.passes(Options(suites=("card",), shapes=("odd",)), "odd", "forward", quiet)
    assert "gdn: groups=8 must divide the hidden width 123" in result.left_out["gdn"]
    assert not {"poly_norm", "swiglu", "asqu"} & {*result.left_out}


def test_the_quick_shapes_have_room_for_every_row_of_the_table():
    for spec in (spec for spec in card_speed.ARG_SPECS if spec.name in card.QUICK_SHAPES):
        for name in ACTIVATIONS:
            assert get_activation(name).specs_at(spec.shape[-1]) is not None


def lines(*losses: float) -> list[dict[str, float]]:
    return [{"step": i + 1, "loss": loss, "grad_norm": 1.0} for i, loss in enumerate(losses)]


def test_runs_that_differ_or_do_not_learn_are_failures(monkeypatch: pytest.MonkeyPatch):
    def runs(*outcomes: Any) -> None:
        left = iter(outcomes)
        monkeypatch.setattr(card_runs, "_pretrain", lambda *words, **more: next(left))

    runs(lines(3, 2), lines(3, 2))
    assert not card_runs.twice(QUICK, quiet).failures
    runs(lines(3, 2), lines(3, np.nextafter(2, 3)))
    assert card_runs.twice(QUICK, quiet).failures == ("two deterministic runs differ",)
    runs(lines(3, 2))
    assert not card_runs.mixture(QUICK, quiet).failures
    runs(lines(2, 3))
    assert card_runs.mixture(QUICK, quiet).failures == ("the loss went from 2 to 3",)
    runs(lines(3, 2), lines(3, 2.5))
    assert card_runs.beside_cpu(QUICK, quiet).failures == ("step 2: loss 2, and 2.5 on the CPU",)


@pytest.mark.slow
def test_all_of_it_in_small():
    for case in card.cases(QUICK):
        result = case.result(quiet)
        assert not result.failures, case.name
        assert result.rows, case.name
