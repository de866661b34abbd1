"""Programs of GPUs, as JAX's CUDA plugin 0.12.0.1 made them for H100s that were not there.

`gpu_triton_layers` and `gpu_cublas_layers`: five layers, scanned, of x + tanh(x up) down, bfloat16
[256, 512] times [512, 1024], the width of 1024 split over four cards, with products by Triton and
by cuBLAS. `gpu_poly_norm`: `poly_norm` of bfloat16 [2048, 4096]. `gpu_cudnn_attention`: gradients
of JAX's causal attention by cuDNN, bfloat16 [2, 512, 4, 64]. Tables of source files are left out.
"""

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import jax
import pytest

from polycom_jax import compile_ahead as aot
from polycom_jax._errors import InputError
from polycom_jax.compile_ahead import platforms
from polycom_jax.compile_ahead.costs import ATTENTION_SHARE

H100 = aot.GPUS["h100"]
LAYERS, ROWS, WIDTH, HIDDEN, CARDS = 5, 256, 512, 1024, 4


def program(name: str) -> str:
    return (Path(__file__).parent / "hlo" / f"gpu_{name}.hlo").read_text()


def predicted(name: str, chip: aot.Chip = H100) -> aot.Prediction:
    return aot.predict_text(program(name), chip)


def times(prediction: aot.Prediction, scope: str) -> int:
    return sum(row.times for row in prediction.rows if scope in row.scope and row.kind == "kernel")


@pytest.mark.parametrize(("name", "launches"), [("triton_layers", 4), ("cublas_layers", 2)])
def test_products_are_counted_in_every_layer(name: str, launches: int):
    prediction = predicted(name)
    # Triton splits the depth of these small products, and adds the parts up in a second kernel.
    assert times(prediction, "layer/dot_general") == launches * LAYERS
    assert prediction.cycles == 0
    assert prediction.not_estimated == ()
    (collective,) = prediction.collectives
    assert (collective.opcode, collective.times) == ("all-reduce", LAYERS)
    assert collective.bytes == LAYERS * 2 * ROWS * WIDTH * 2 * (CARDS - 1) / CARDS
    # Only a counter is moved on beside it.
    assert not collective.asynchronous
    assert prediction.collective_seconds == pytest.approx(collective.bytes / H100.link_bandwidth)


def test_each_layer_moves_its_own_matrices_and_no_workspace():
    """In units of a card's share of tanh(x up); x and each of a layer's matrices are two."""
    prediction = predicted("cublas_layers")
    unit = ROWS * HIDDEN // CARDS * 2
    # The two products, tanh between them, the sum over cards, and x plus that; x is copied once.
    read, written = (2 + 2) + (1 + 2) + 1 + 2 + (2 + 2), 1 + 2 + 1 + 2 + 2
    assert prediction.bytes_read == pytest.approx((LAYERS * read + 2) * unit, rel=1e-4)
    assert prediction.bytes_written == pytest.approx((LAYERS * written + 2) * unit, rel=1e-4)


def test_a_slow_card_computes_where_a_fast_one_waits_for_memory():
    slow = predicted("cublas_layers", aot.GPUS["t4"])
    flops = LAYERS * 2 * 2 * ROWS * WIDTH * HIDDEN / CARDS
    products = sum(row.seconds for row in slow.rows if row.kind == "kernel" and "dot" in row.scope)
    # It has no bfloat16: such a product is one of float32.
    assert products == pytest.approx(flops / aot.GPUS["t4"].peaks["f32"])


def test_passes_over_x_are_counted():
    prediction = predicted("poly_norm")
    x = 2048 * 4096 * 2
    assert prediction.kernels == 5
    assert prediction.bytes_read / x == pytest.approx(3, abs=0.02)
    assert prediction.bytes_written / x == pytest.approx(1, abs=0.02)
    assert prediction.seconds == pytest.approx(4 * x / H100.hbm_bandwidth, rel=0.02)


@pytest.mark.parametrize("card", [H100, replace(aot.GPUS["l4"], hbm_bandwidth=3e12)])
def test_attention_counts_what_its_causal_mask_leaves(card: aot.Gpu):
    rows = predicted("cudnn_attention", card).rows
    backward, forward = (r.seconds for r in rows if "dot_product_attention" in r.scope)
    q, product = 2 * 512 * 4 * 64 * 2, 2 * 2 * 4 * 512**2 * 64 / 2
    peak, bandwidth = ATTENTION_SHARE * card.peak_flops, card.hbm_bandwidth
    # q, k, v and the result; and the same with gradients. One number a query more is near nothing.
    assert forward == pytest.approx(max(2 * product / peak, 4 * q / bandwidth), rel=0.05)
    assert backward == pytest.approx(max(5 * product / peak, 8 * q / bandwidth), rel=0.05)


def test_attention_counts_what_its_window_leaves():
    text = program("cudnn_attention")
    slow = replace(aot.GPUS["l4"], hbm_bandwidth=1e15)

    def seconds(window: int) -> float:
        windowed = text.replace('"sliding_window_length": 0', f'"sliding_window_length": {window}')
        rows = aot.predict_text(windowed, slow).rows
        return sum(r.seconds for r in rows if "dot_product_attention" in r.scope)

    assert seconds(512) == seconds(0)
    # Of 512 keys: 128 a query, less where a row begins; the causal mask alone leaves half.
    assert seconds(128) / seconds(0) == pytest.approx((128 - 128**2 / 1024) / 256, rel=1e-6)


def test_the_report_names_kernels_and_no_cycles():
    report = predicted("poly_norm").report()
    assert "5 kernels" in report
    assert "Mcycles" not in report


@pytest.mark.parametrize("card", aot.GPUS.values(), ids=lambda card: card.name)
def test_each_card_is_described_to_xla_as_in_the_table(card: aot.Gpu):
    facts = card.target_config
    major, minor = str(card.compute_capability).split(".")
    assert f"cuda_compute_capability {{ major: {major} minor: {minor} " in facts
    assert f"device_memory_size: {card.hbm_bytes}\n" in facts
    assert f"clock_rate_ghz: {card.clock / 1e9:g}\n" in facts
    assert facts.count(f'"{card.device_kind}"') == 2
    (bandwidth,) = (line.split()[1] for line in facts.splitlines() if "memory_bandwidth" in line)
    assert float(bandwidth) == pytest.approx(card.hbm_bandwidth, rel=1e-3)


def test_without_the_wheels_one_line_names_the_extra(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(platforms.shutil, "which", lambda name: None)
    both = r"needs jax-cuda13-plugin and nvidia-cuda-nvcc, .*plan-gpu"
    with pytest.raises(InputError, match=both) as caught:
        aot.devices("h100")
    assert "\n" not in str(caught.value)


def test_jax_must_not_look_for_a_card(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1")
    with jax_platforms(None), pytest.raises(InputError, match=r"JAX_PLATFORMS=cpu .*without_gpu"):
        aot.devices("t4")


@pytest.mark.parametrize("topology", ["0", "9", "2x2", "many"])
def test_a_machine_has_so_many_cards(topology: str):
    with pytest.raises(InputError, match="a number of GPUs on one machine, 1 to 8"):
        aot.devices("h100", topology)


def test_machines_of_gpus_are_not_joined():
    with pytest.raises(InputError, match="on one machine"):
        aot.devices("h100", "8", slices=2)


def test_what_is_set_is_left_alone():
    with jax_platforms("tpu,cpu"):
        aot.without_gpu()
        assert jax.config.jax_platforms == "tpu,cpu"
    with jax_platforms(None):
        aot.without_gpu()
        assert jax.config.jax_platforms == "cpu"


class jax_platforms:
    """While it lasts, JAX's setting is this one."""

    def __init__(self, value: str | None) -> None:
        self.value = value

    def __enter__(self) -> None:
        self.before = jax.config.jax_platforms
        jax.config.update("jax_platforms", self.value)

    def __exit__(self, *_: object) -> None:
        jax.config.update("jax_platforms", self.before)


@pytest.mark.parametrize(
    ("name", "operands", "result", "products"),
    [
        # 100 rows in 4 groups: at most (100 + 4 x 31) // 32 = 7 blocks of 32, or 10 of 16.
        ("grouped_rows_32", "bf16[100,64] bf16[4,64,48]", "bf16[100,48]", 7 * 32 * 64 * 48),
        ("grouped_rows_32", "bf16[100,48] bf16[4,64,48]", "bf16[100,64]", 7 * 32 * 64 * 48),
        ("grouped_matrices_16", "bf16[100,64] bf16[100,48]", "bf16[4,64,48]", 10 * 16 * 64 * 48),
    ],
)
def test_a_grouped_product_has_the_flops_of_its_tiles(
    name: str, operands: str, result: str, products: int
):
    x, y = operands.split()
    text = f"""HloModule m

ENTRY %main (s: s32[4], x: {x}, y: {y}) -> {result} {{
  %s = s32[4]{{0}} parameter(0)
  %x = {x} parameter(1)
  %y = {y} parameter(2)
  ROOT %call = {result} custom-call(%s, %x, %y), custom_call_target="__gpu$xla.gpu.triton", \
metadata={{op_name="jit(f)/grouped_matmul/{name}/pallas_call"}}
}}
"""
    # So slow that nothing but products counts.
    chip = replace(H100, peaks={"bf16": 1e6, "f32": 1e6}, peak_flops=1e6)
    assert aot.predict_text(text, chip).seconds == pytest.approx(2 * products / 1e6)
