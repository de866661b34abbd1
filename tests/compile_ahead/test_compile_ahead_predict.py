"""Programs in the folder hlo are written by hand in the form of libtpu's scheduled programs.

Except `scanned_layers`, which libtpu 0.0.50.1 made for four v5e chips: five layers, scanned, of
x + tanh(x up) down, bfloat16 [256, 512] times [512, 1024], the width of 1024 split over the chips.
Its tables of source files are left out.
"""

import itertools
from pathlib import Path

import pytest

from polycom_jax._errors import InputError
from polycom_jax.compile_ahead.chips import CHIPS, TPUS, chip_of_kind
from polycom_jax.compile_ahead.hbm_bytes import hbm_traffic
from polycom_jax.compile_ahead.hlo import parse
from polycom_jax.compile_ahead.loop_trip_counts import _count
from polycom_jax.compile_ahead.predict import predict_text

V5E = CHIPS["v5e"]
MIB = 2**20
CYCLES = 'backend_config={"window_config":{"kernel_window_bounds":[],"estimated_cycles":"%d"}}'


def program(name: str) -> str:
    return (Path(__file__).parent / "hlo" / f"{name}.hlo").read_text()


def nested(limit: str, inner: int = 1000) -> str:
    # A counter goes from 0 to `limit`; inside it, another one from 2 to 8 in steps of 3.
    return program("nested_loops").replace("INNER", CYCLES % inner).replace("LIMIT", limit)


def test_a_program_of_libtpu_is_read_as_its_source_says():
    prediction = predict_text(program("scanned_layers"), V5E)
    layer = "while/body/eval_jaxpr/layer"
    assert {(row.scope, row.kind, row.times) for row in prediction.rows} == {
        (f"{layer}/dot_general", "compiled", 5),
        (f"{layer}/dot_general", "collective", 5),
        (f"{layer}/add", "compiled", 5),
    }
    (collective,) = prediction.collectives
    # A ring over four chips sends 3/4 of the array twice.
    assert (collective.opcode, collective.times) == ("all-reduce", 5)
    assert collective.bytes == 5 * 256 * 512 * 2 * 2 * 3 / 4
    # The products' operands and results, and no whole stack of matrices a layer.
    matrices = 5 * 2 * 512 * 256 * 2
    assert matrices < prediction.bytes_accessed < 6 * matrices
    assert [note.split(",")[0] for note in prediction.not_estimated] == [
        "1 x copy",
        "1 x copy-start",
    ]


def test_nested_loops_multiply():
    # The inner one takes two steps; the outer bound is carried along unchanged.
    prediction = predict_text(nested("constant(7)"), V5E)
    assert prediction.cycles == pytest.approx(7 * 2 * 1000)
    assert [(row.scope, row.times) for row in prediction.rows] == [
        ("while/body/while/body/(deep)/mul", 14)
    ]
    assert prediction.not_estimated == ()
    assert prediction.seconds == pytest.approx(14_000 / 1.5e9)


def test_a_loop_that_depends_on_data_counts_once_and_is_reported():
    prediction = predict_text(nested("convert(%a)"), V5E)
    assert prediction.cycles == pytest.approx(2 * 1000)
    assert prediction.not_estimated == ("how often the loop while runs; counted once",)


def test_a_counter_that_starts_past_its_bound_runs_nothing():
    assert predict_text(nested("constant(-3)"), V5E).cycles == 0


@pytest.mark.parametrize(
    ("compare", "trips"),
    [
        ("%i.1, %eight), direction=LE", 3),
        ("%eight, %i.1), direction=GE", 3),
        ("%i.1, %eight), direction=NE", 2),
        ("%i.1, %eight), direction=GT", None),
    ],
)
def test_every_direction_of_the_condition_is_read(compare: str, trips: int | None):
    text = nested("constant(1)").replace("%i.1, %eight), direction=LT", compare)
    prediction = predict_text(text, V5E)
    assert prediction.cycles == pytest.approx(1000 * (1 if trips is None else trips))
    assert len(prediction.not_estimated) == (trips is None)


@pytest.mark.parametrize(("direction", "beyond"), [("LT", 0), ("GT", 0), ("LE", 1), ("GE", -1)])
def test_trips_are_those_of_a_range_of_python(direction: str, beyond: int):
    sign = 1 if direction[0] == "L" else -1
    for step, distance in itertools.product(range(1, 9), range(30)):
        end = 5 + sign * distance
        expected = len(range(5, end + beyond, sign * step))
        assert _count(5, end, sign * step, direction) == expected, (step, distance)


def test_a_trip_count_that_the_compiler_wrote_down_is_taken():
    known = ', backend_config={"known_trip_count":{"n":"11"}}'
    text = nested("convert(%a)").replace(
        'op_name="jit(f)/while"}', 'op_name="jit(f)/while"}' + known
    )
    assert predict_text(text, V5E).cycles == pytest.approx(11 * 2 * 1000)


def test_the_longest_branch_of_a_conditional_counts():
    text = program("conditional").replace("CHEAP", CYCLES % 10).replace("DEAR", CYCLES % 500)
    prediction = predict_text(text, V5E)
    assert prediction.cycles == pytest.approx(500)
    assert [row.scope for row in prediction.rows] == ["cond/dear"]


def test_of_a_rescue_the_branch_counts_that_runs_while_nothing_overflows():
    text = program("conditional").replace("CHEAP", CYCLES % 10).replace("DEAR", CYCLES % 500)
    assert "jit(f)/cond" in text
    prediction = predict_text(text.replace("jit(f)/cond", "jit(f)/rescue/cond"), V5E)
    assert prediction.cycles == pytest.approx(10)


def without_estimates(flops: float = 0, groups: str = "{{0,1,2,3}}") -> str:
    # A kernel that reads 8 MiB and writes 4, a gather to 1 MiB over four chips, a permutation that
    # XLA overlaps, a scatter without an estimate, and an array that stays in VMEM.
    text = program("without_estimates").replace("FLOPS", str(int(flops))).replace("GROUPS", groups)
    return text.replace("CYCLES", CYCLES % 3000)


def test_a_kernel_takes_its_bytes_or_its_declared_flops():
    by_bytes = predict_text(without_estimates(), V5E)
    assert by_bytes.kernel_seconds == pytest.approx((8 + 4) * MIB / V5E.hbm_bandwidth)
    by_flops = predict_text(without_estimates(flops=10**12), V5E)
    assert by_flops.kernel_seconds == pytest.approx(10**12 / V5E.peak_flops)


@pytest.mark.parametrize(
    "groups", ["{{0,1,2,3}}", "{{0,2,1,3},{4,6,5,7}}", "[2,4]<=[8]", "mesh['x'=4,'y'=2] {'x'}"]
)
def test_a_collective_takes_what_leaves_a_chip(groups: str):
    prediction = predict_text(without_estimates(groups=groups), V5E)
    assert prediction.collective_seconds == pytest.approx(MIB * 3 / 4 / V5E.link_bandwidth)
    assert prediction.asynchronous_seconds == pytest.approx(MIB / V5E.link_bandwidth)
    parts = prediction.cycles / V5E.clock + prediction.kernel_seconds
    assert prediction.seconds == pytest.approx(parts + prediction.collective_seconds)


def test_what_has_no_estimate_is_named():
    prediction = predict_text(without_estimates(), V5E)
    assert prediction.not_estimated == (f"1 x scatter, {4 * MIB:,} bytes in all",)
    report = prediction.report()
    assert "not estimated: 1 x scatter" in report
    assert "an unknown compiler" in report
    assert "pallas_call" in report


def test_arrays_in_vmem_are_no_hbm_traffic():
    module = parse(without_estimates())
    main = module.computations["main"]
    assert hbm_traffic(module, main, main.instructions["fast"]) == MIB


def test_a_slice_counts_as_what_is_taken_of_it():
    module = parse(program("slices"))
    main = module.computations["main"]
    part = 256 * 1024 * 2
    assert hbm_traffic(module, main, main.instructions["taken"]) == 2 * part + 4
    assert hbm_traffic(module, main, main.instructions["written"]) == 2 * part + 4


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        predict_text("HloModule empty\n", V5E)


def test_unknown_sizes_are_refused():
    with pytest.raises(InputError, match="temp_bytes"):
        predict_text(nested("constant(1)"), V5E, temp_bytes=1)


def test_chips_are_found_by_what_jax_calls_them():
    assert {name: chip_of_kind(chip.device_kind).name for name, chip in CHIPS.items()} == {
        name: name for name in CHIPS
    }
    with pytest.raises(InputError, match="TPU v5 lite"):
        chip_of_kind("TPU v5 lit")


@pytest.mark.parametrize("chip", TPUS.values(), ids=lambda chip: chip.name)
def test_the_clock_goes_with_the_peak(chip):
    """Peak FLOP/s is a whole number of 128 x 128 multiply-add units, all busy each cycle."""
    units = chip.peak_flops / chip.clock / (2 * 128 * 128)
    assert units == pytest.approx(round(units), rel=0.01)
    assert round(units) == {"v4": 8, "v5e": 4, "v5p": 8, "v6e": 16, "tpu7x": 16}[chip.name]


def test_a_kernels_notes_over_several_lines_do_not_end_its_computation():
    prediction = predict_text(program("kernel_notes"), V5E)
    (row,) = [row for row in prediction.rows if row.kind == "kernel"]
    assert (row.scope, row.times) == ("attention/splash_mha_fwd_residuals/pallas_call", 24)
    # Causal attention of 2 x 16 heads: two products of 4096^2 x 128, half of it, at half the peak.
    flops = 2 * 2 * 2 * 16 * 4096**2 * 128 / 2
    assert prediction.kernel_seconds == pytest.approx(24 * flops / (0.5 * V5E.peak_flops))


# Forward q k^T and p v; backward q k^T and dp once more, then dk and dv, or dq.
@pytest.mark.parametrize(("kernel", "products"), [("fwd", 2), ("dkv", 4), ("dq", 3)])
def test_each_kernel_of_attention_makes_its_own_products(kernel: str, products: int):
    text = program("kernel_notes").replace("splash_mha_fwd_residuals", f"splash_mha_{kernel}")
    flops = products * 2 * 2 * 16 * 4096**2 * 128 / 2
    expected = 24 * flops / (0.5 * V5E.peak_flops)
    assert predict_text(text, V5E).kernel_seconds == pytest.approx(expected)


@pytest.mark.parametrize(
    ("chip", "width", "busy"),
    [("v5e", 64, 128), ("v5e", 128, 128), ("v6e", 128, 256), ("v6e", 256, 256), ("v6e", 320, 512)],
)
def test_attention_keeps_whole_matrix_units_busy(chip: str, width: int, busy: int):
    text = program("kernel_notes").replace("4096,128]", f"4096,{width}]")
    prediction = predict_text(text, TPUS[chip])
    flops = 2 * 2 * 2 * 16 * 4096**2 * busy / 2
    expected = 24 * flops / (0.5 * TPUS[chip].peak_flops)
    assert prediction.kernel_seconds == pytest.approx(expected)


def test_attention_with_a_window_counts_the_keys_that_its_blocks_meet():
    text = program("kernel_notes").replace("/splash_mha", "/window_1024/splash_mha")
    flops = 2 * 2 * 2 * 16 * 128 * (1024 * 4096 - 1024**2 / 2)
    prediction = predict_text(text, V5E)
    assert prediction.kernel_seconds == pytest.approx(24 * flops / (0.5 * V5E.peak_flops))


def test_collectives_are_added_up_by_kind():
    text = """HloModule m

ENTRY %main (x: f32[1024]) -> f32[4096] {
  %x = f32[1024] parameter(0)
  %a = f32[1024] all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
  %b = f32[1024] all-reduce(%a), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %y = f32[4096] all-gather(%b), replica_groups=[1,4]<=[4], dimensions={0}
}
"""
    reduce, gather = predict_text(text, V5E).collectives
    assert (reduce.opcode, reduce.asynchronous, reduce.times) == ("all-reduce", False, 2)
    assert reduce.bytes == pytest.approx(2 * 2 * 3 / 4 * 4096)
    assert reduce.seconds == pytest.approx(reduce.bytes / V5E.link_bandwidth)
    assert (gather.opcode, gather.times) == ("all-gather", 1)
    assert gather.bytes == pytest.approx(3 / 4 * 16384)
