"""The suite gpu: its cases, its arithmetic, and small ones by the compiler."""

from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.benchmark import gpu
from experiments.benchmark.options import Options
from polycom_jax import InputError
from polycom_jax import compile_ahead as aot
from polycom_jax.training.loss_scale import check_loss_scaling


def predicted(**sizes: Any) -> aot.Prediction:
    text = """HloModule m

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  ROOT %y = f32[1024]{0} copy(%x)
}
"""
    return aot.predict_text(text, aot.GPUS["h100"], **sizes)


def test_every_card_pass_and_shape_is_a_case_and_products_are_computed_in_both_ways():
    options = Options(suites=("gpu",), gpus=("t4", "h100"), passes=("both",), model="dense-110m")
    cases = [case.name for case in gpu.cases(options) if "h100" in case.name]
    assert cases == [
        "ops dense_1b both on h100",
        "ffn both on h100, products by Triton",
        "ffn both on h100, products by cuBLAS",
        "step of dense-110m on h100, products by Triton",
        "step of dense-110m on h100, products by cuBLAS",
    ]
    assert not any(
        "step" in c.name for c in gpu.cases(Options(suites=("gpu",), parts=("ops", "ffn")))
    )


def test_an_unknown_card_names_the_known_ones():
    with pytest.raises(InputError, match=r"Unknown GPU 'h20'. Did you mean 'h200'"):
        Options(gpus=("h20",))


def test_traffic_stands_beside_its_floor():
    numbers = gpu._numbers(predicted(argument_bytes=4096, output_bytes=2048))
    assert numbers["kernels"] == 1
    assert numbers["MiB read"] == numbers["MiB written"] == 4096 / 2**20
    assert numbers["of the floor"] == pytest.approx(8192 / 6144)


def test_a_step_is_that_of_the_model_s_own_recipe_on_one_card():
    config = gpu._config(Options(model="dense-110m", batch_size=2), "swiglu")
    assert (config.model.activation, config.data.batch_size) == ("swiglu", 2)
    assert config.model.document_mask
    assert config.optim.peak_learning_rate == 6e-4


def test_a_step_in_float16_scales_its_losses():
    config = gpu._config(Options(model="dense-110m", dtype="float16"), "swiglu")
    assert (config.model.dtype, config.optim.loss_scaling) == ("float16", "dynamic")
    check_loss_scaling(config.model.dtype, config.optim.loss_scaling)


def test_products_can_be_computed_in_one_way_alone():
    options = Options(suites=("gpu",), gpus=("t4",), parts=("ffn",), products=("cuBLAS",))
    assert [case.name for case in gpu.cases(options)] == [
        f"ffn {which} on t4, products by cuBLAS" for which in ("forward", "backward", "both")
    ]
    with pytest.raises(InputError, match="Unknown products 'cublas'"):
        Options(products=("cublas",))


@pytest.mark.gpu_backend
def test_operations_are_counted_in_passes(tmp_path: Path):
    options = Options(
        suites=("gpu",),
        gpus=("a100",),
        passes=("forward",),
        shapes=("liger_8192x4096",),
        activations=("poly_relu",),
        out=str(tmp_path),
    )
    result = gpu.cases(options)[0].run(lambda text: None)
    rows = {row.name: row.numbers for row in result.rows}
    assert list(rows) == ["poly_relu", "poly_relu (gpu)", "relu2"]
    for numbers in rows.values():
        assert numbers["reads of x"] == pytest.approx(1, abs=0.01)
        assert numbers["writes of x"] == pytest.approx(1, abs=0.01)
        assert numbers["of the floor"] == pytest.approx(1, abs=0.01)
    assert result.kind == "predicted"
    assert "a floor" in result.notes[0]
    assert (result.chip, result.which) == ("a100", "forward")
    assert gpu.cases(options)[0].run(lambda text: None) == result  # from the file


@pytest.mark.slow
@pytest.mark.gpu_backend
def test_whole_steps_are_compared_by_time_and_memory(tmp_path: Path):
    options = Options(
        model="tiny", batch_size=1, seq_len=128, activations=("relu2",), out=str(tmp_path)
    )
    result = gpu._steps(options, "t4", aot.PRODUCT_BACKENDS["cuBLAS"], lambda text: None)
    assert [row.name for row in result.rows] == ["relu2", "swiglu"]
    assert all(0 < row.numbers["of the card"] < 0.1 for row in result.rows)
    assert jax.default_backend() == "cpu"
