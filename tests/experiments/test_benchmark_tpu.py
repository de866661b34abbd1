from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import predicted, tpu
from experiments.benchmark.arg_specs import ARG_SPECS
from experiments.benchmark.options import Options
from polycom_jax import compile_ahead as aot
from polycom_jax._errors import InputError
from polycom_jax.compile_ahead.platforms import ENVIRONMENT
from polycom_jax.table import ACTIVATIONS


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def prediction(cycles: float, **changes) -> aot.Prediction:
    known = aot.predict_text(
        "ENTRY %main (a: f32[8]) -> f32[8] {\n}\n", aot.CHIPS["v5e"], compiler="libtpu 1"
    )
    return replace(known, cycles=cycles, **changes)


def test_the_passes_are_the_value_and_the_gradients():
    x = jnp.array([1.0, -2.0, 3.0])
    contestant = predicted.Contestant(lambda c, x: c * x**2, (jnp.float32(2), x))
    forward, arguments = contestant.program("forward")
    np.testing.assert_array_equal(forward(*arguments), [2, 8, 18])
    both, (dy, *arguments) = contestant.program("both")
    assert (dy.shape, dy.dtype) == (x.shape, x.dtype)
    y, gradients = both(jnp.ones(3), *arguments)
    np.testing.assert_array_equal(y, [2, 8, 18])
    np.testing.assert_array_equal(gradients[0], 14)
    np.testing.assert_array_equal(gradients[1], 4 * x)
    backward, (pull, _) = contestant.program("backward")
    shapes = jax.eval_shape(backward, pull, x)
    assert [leaf.shape for leaf in shapes] == [(), (3,)]


def test_every_chip_pass_and_shape_is_a_case():
    options = Options(suites=("tpu",), chips=("v4", "v6e"), passes=("both",))
    assert [case.name for case in tpu.cases(options)] == [
        "ops dense_1b both on v4",
        "ffn both on v4",
        "ops dense_1b both on v6e",
        "ffn both on v6e",
    ]
    options = replace(options, shapes=("liger_8192x4096", "moe_expert"), chips=("v4",))
    assert len(tpu.cases(options)) == 3
    options = Options(suites=("tpu",), chips=("v4",), passes=("both",), parts=("ffn",))
    assert [case.name for case in tpu.cases(options)] == ["ffn both on v4"]
    with pytest.raises(InputError, match="the suite tpu compiles ops and ffn"):
        tpu.cases(replace(options, parts=("step",)))


def test_blocks_hold_equal_numbers_of_parameters():
    case, contestants = predicted.blocks(tpu.SUITE, Options(suites=("tpu",), implementation="xla"))
    assert case == "ffn, dense-1b, 2 x 4096 tokens, bfloat16"
    assert list(contestants) == ["poly_norm", "poly_relu", "relu2", "swiglu"]
    matrices = {
        name: sum(leaf.size for leaf in jax.tree.leaves(make().arguments[1]) if leaf.ndim == 2)
        for name, make in contestants.items()
    }
    assert len(set(matrices.values())) == 1
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(contestants["poly_norm"]().arguments[1])}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


def test_without_a_named_implementation_those_that_run_on_a_tpu_are_compiled():
    options = Options(suites=("tpu",), activations=("poly_norm",))
    _, found = predicted.operations(ARG_SPECS[0], tpu.SUITE, options)
    assert list(found) == ["poly_norm", "poly_norm (tpu)", "poly_norm (pallas_tpu)", "relu2"]


def test_the_whole_table_by_its_best_implementations_is_one_command():
    options = Options(suites=("tpu",), activations=("gelu", "all"), implementation="best")
    assert options.activations == ("gelu", *(name for name in ACTIVATIONS if name != "gelu"))
    _, found = predicted.blocks(tpu.SUITE, options)
    assert tuple(found) == options.activations
    two = {"gelu": prediction(2e6), "poly_norm": prediction(3e6)}
    (_, row) = predicted.rows(two, tpu.SUITE.numbers, ("gelu", *predicted.REFERENCES))
    assert row.ratios["gelu"].median == pytest.approx(1.5)


@pytest.mark.parametrize("part", ["ops", "ffn"])
def test_rows_whose_groups_do_not_divide_the_width_are_left_out(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predicted.Readings, "predict", lambda *words: prediction(1.0))
    odd = next(spec for spec in ARG_SPECS if spec.name == "odd")
    find = {"ops": partial(predicted.operations, odd), "ffn": predicted.blocks}[part]
    options = Options(
        activations=("all",), implementation="best", model="small-5m", out=str(tmp_path)
    )
    _, found = find(tpu.SUITE, options)
    made = predicted.predict_each(found, options, "v5e", {}, lambda text: None)  # pyright: ignore
    assert made.failures == ()
    assert {*made.predictions, *made.left_out} == {*ACTIVATIONS}
    assert "evonorm_s0: groups=64 must divide the hidden width" in made.left_out["evonorm_s0"]
    assert {"poly_norm", "asqu", "motif3_glu"} <= {*made.predictions}


def test_rows_are_compared_with_both_references():
    found = predicted.rows(
        {"poly_norm": prediction(3e6), "relu2": prediction(2e6), "swiglu": prediction(4e6)},
        tpu.SUITE.numbers,
    )
    assert {name: spread.median for name, spread in found[0].ratios.items()} == {
        "relu2": pytest.approx(1.5),
        "swiglu": pytest.approx(0.75),
    }
    assert found[0].seconds.median == pytest.approx(2e-3)
    assert found[0].numbers["Mcycles"] == pytest.approx(3)


def test_notes_say_what_a_prediction_rests_on():
    kernels = prediction(1.0, kernel_seconds=1.0, not_estimated=("1 x scatter, 8 bytes in all",))
    said = predicted.notes({"poly_norm (pallas_tpu)": kernels, "relu2": prediction(1.0)})
    assert said[0].startswith("predicted by libtpu 1")
    assert "of poly_norm (pallas_tpu) the kernels are a roofline" in said[1]
    assert said[2] == "poly_norm (pallas_tpu): no estimate of 1 x scatter, 8 bytes in all"


@pytest.mark.tpu_backend
def test_an_operation_is_predicted_and_what_cannot_run_is_left_out(tmp_path: Path):
    options = Options(
        suites=("tpu",), chips=("v5e",), passes=("forward",), shapes=("f16",), out=str(tmp_path)
    )
    (operation, _) = tpu.cases(options)
    result = operation.run(lambda text: None)
    names = [row.name for row in result.rows]
    assert names[0] == "poly_norm"
    assert "relu2" in names
    assert "poly_norm (pallas_tpu)" in result.left_out
    assert result.kind == "predicted"
    assert all(row.seconds.median > 0 for row in result.rows)
