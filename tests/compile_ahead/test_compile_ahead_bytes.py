"""What programs move of which a part is read or written, in the form of libtpu and of XLA."""

import pytest

from polycom_jax import compile_ahead as aot
from polycom_jax.compile_ahead.hbm_bytes import Traffic, read_and_written
from polycom_jax.compile_ahead.hlo import parse

V5E, H100 = aot.TPUS["v5e"], aot.GPUS["h100"]
X, PART, INDEX = 4096 * 1024 * 4, 16 * 1024 * 4, 4


def moved(text: str, name: str = "y") -> Traffic:
    module = parse(f"HloModule m\n{text}")
    main = module.computations["main"]
    return read_and_written(module, main, main.instructions[name])


def fused(body: str, *, x: str = "f32[4096,1024]", more: str = "") -> str:
    """A fusion of x, of u, a part as large as 16 rows, and of a place i."""
    return f"""
{more}
%fused (x: {x}, u: f32[16,1024], i: s32[]) -> f32[4096,1024] {{
  %x = {x} parameter(0)
  %u = f32[16,1024] parameter(1)
  %i = s32[] parameter(2)
{body}
}}

ENTRY %main (x: {x}, u: f32[16,1024], i: s32[]) -> f32[4096,1024] {{
  %x = {x} parameter(0)
  %u = f32[16,1024] parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = f32[4096,1024] fusion(%x, %u, %i), kind=kLoop, calls=%fused
}}
"""


ROWS = "f32[4096,1024]"
UPDATE = "f32[4096,1024] dynamic-update-slice(%{}, %u, %i, %i)"


def test_what_is_updated_in_place_is_not_touched_elsewhere():
    alone = fused(f"  ROOT %new = {UPDATE.format('x')}")
    assert moved(alone) == (PART + INDEX, PART)
    twice = f"  %one = {UPDATE.format('x')}\n  ROOT %two = {UPDATE.format('one')}"
    assert moved(fused(twice)) == (PART + INDEX, 2 * PART)


def test_an_update_that_is_computed_with_reads_the_whole():
    body = f"  %new = {UPDATE.format('x')}\n  ROOT %y = f32[4096,1024] negate(%new)"
    assert moved(fused(body)) == (X + PART + INDEX, X)


def test_an_update_that_others_read_too_reads_the_whole():
    body = f"""  %new = {UPDATE.format("x")}
  %other = f32[4096,1024] negate(%new)
  ROOT %both = (f32[4096,1024], f32[4096,1024]) tuple(%new, %other)"""
    text = fused(body).replace(
        "ROOT %y = f32[4096,1024] fusion", "ROOT %y = (f32[4096,1024], f32[4096,1024]) fusion"
    )
    assert moved(text) == (X + PART + INDEX, 2 * X)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_an_update_of_what_is_computed_writes_the_whole(dtype: str):
    """Of x in another dtype, or of other numbers."""
    opcode = {"bf16": "convert", "f32": "negate"}[dtype]
    body = f"  %wide = f32[4096,1024] {opcode}(%x)\n  ROOT %y = {UPDATE.format('wide')}"
    read = X // {"bf16": 2, "f32": 1}[dtype]
    assert moved(fused(body, x=f"{dtype}[4096,1024]")) == (read + PART + INDEX, X)


ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def test_a_scatter_touches_the_rows_that_it_adds_to():
    scatter = "f32[4096,1024] scatter(%x, %i, %u), to_apply=%add"
    # The rows, what is added to them, and the sums.
    assert moved(fused(f"  ROOT %y = {scatter}", more=ADD)) == (2 * PART + INDEX, PART)
    alone = fused("  ROOT %y = f32[4096,1024] negate(%x)", more=ADD)
    fusion = "f32[4096,1024] fusion(%x, %u, %i), kind=kLoop, calls=%fused"
    assert moved(alone.replace(fusion, scatter)) == (2 * PART + INDEX, PART)


def test_a_scatter_of_two_arrays_touches_rows_of_both():
    text = f"""{ADD}
ENTRY %main (x: {ROWS}, u: f32[16,1024], i: s32[]) -> ({ROWS}, {ROWS}) {{
  %x = {ROWS} parameter(0)
  %w = {ROWS} parameter(1)
  %u = f32[16,1024] parameter(2)
  %v = f32[16,1024] parameter(3)
  %i = s32[] parameter(4)
  ROOT %y = ({ROWS}, {ROWS}) scatter(%x, %w, %i, %u, %v), to_apply=%add
}}
"""
    assert moved(text) == (2 * 2 * PART + INDEX, 2 * PART)
    inner = text[len(ADD) :].replace("ENTRY %main", "%fused")
    fusion = "fusion(%x, %w, %i, %u, %v), kind=kCustom, calls=%fused"
    start = text.index("scatter(")
    assert moved(ADD + inner + text[len(ADD) : start] + fusion + "\n}\n") == moved(text)


def test_a_scatter_into_an_array_of_another_form_reads_the_rows_too():
    body = """  %flat = f32[4096,1024] bitcast(%x)
  ROOT %y = f32[4096,1024] scatter(%flat, %i, %u), to_apply=%add"""
    assert moved(fused(body, more=ADD)) == (2 * PART + INDEX, PART)


LAYERS = """
%take (w: bf16[8,1024,1024], i: s32[]) -> bf16[1024,1024] {
  %w = bf16[8,1024,1024] parameter(0)
  %i = s32[] parameter(1)
  %slice = bf16[1,1024,1024] dynamic-slice(%w, %i, %i, %i), dynamic_slice_sizes={1,1024,1024}
  ROOT %bitcast = bf16[1024,1024] bitcast(%slice)
}

%same (h: bf16[256,1024]) -> bf16[256,1024] {
  %h = bf16[256,1024]{1,0:S(1)} parameter(0)
  ROOT %bitcast = bf16[256,1024] bitcast(%h)
}

%layer (h: bf16[256,1024], w: bf16[8,1024,1024], i: s32[]) -> bf16[256,1024] {
  %h = bf16[256,1024] parameter(0)
  %x = bf16[256,1024] fusion(%h), kind=kLoop, calls=%same
  %w = bf16[8,1024,1024] parameter(1)
  %i = s32[] parameter(2)
  %own = bf16[1024,1024] fusion(%w, %i), kind=kLoop, calls=%take
  ROOT %y = bf16[256,1024] convolution(%x, %own), dim_labels=bf_io->bf
}

ENTRY %main (h: bf16[256,1024], w: bf16[8,1024,1024], i: s32[]) -> bf16[256,1024] {
  %h = bf16[256,1024] parameter(0)
  %w = bf16[8,1024,1024] parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = bf16[256,1024] fusion(%h, %w, %i), kind=kOutput, calls=%layer
}
"""


def test_a_layer_reads_its_own_matrix_of_a_stack():
    """libtpu takes it by a fusion inside the product's."""
    hidden, matrix = 256 * 1024 * 2, 1024 * 1024 * 2
    assert moved(LAYERS) == (hidden + matrix + INDEX, hidden)
    whole = LAYERS.replace("dynamic-slice(%w, %i, %i, %i)", "reduce(%w, %i)")
    assert moved(whole) == (hidden + 8 * matrix + INDEX, hidden)


IN_VMEM = """
ENTRY %main (x: f32[4096,1024], u: f32[16,1024], i: s32[]) -> f32[4096,1024] {
  %x = f32[4096,1024]{1,0} parameter(0)
  %u = f32[16,1024]{1,0:S(1)} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  %taken = f32[16,1024]{1,0:S(1)} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={16,1024}
  %start = ((f32[4096,1024]{1,0}), f32[16,1024]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x)
  %done = f32[16,1024]{1,0:S(1)} slice-done(%start)
  %buffer = f32[4096,1024]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %y = f32[4096,1024]{1,0} dynamic-update-slice(%x, %u, %i, %i)
}
"""


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [("y", 0, PART), ("taken", PART, 0), ("buffer", 0, 0)],
)
def test_one_end_of_a_transfer_may_be_on_the_chip(name: str, read: int, written: int):
    assert moved(IN_VMEM, name) == (read, written)


def test_an_asynchronous_slice_reads_a_part():
    read, written = moved(IN_VMEM, "start")
    assert (read, written) == (pytest.approx(PART, abs=INDEX), 0)


SCATTERED = f"""HloModule m

%fused (x: {ROWS}) -> f32[1024,1024] {{
  %x = {ROWS} parameter(0)
  %sum = {ROWS} all-reduce(%x), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  %me = u32[] partition-id()
  ROOT %own = f32[1024,1024] dynamic-slice(%sum, %me, %me), dynamic_slice_sizes={{1024,1024}}
}}

ENTRY %main (x: {ROWS}) -> f32[1024,1024] {{
  %x = {ROWS} parameter(0)
  ROOT %y = f32[1024,1024] fusion(%x), kind=kCustom, calls=%fused
}}
"""


def test_a_sum_of_which_a_chip_keeps_a_slice_is_a_reduce_scatter():
    """As libtpu writes one: a fusion called all-reduce-scatter."""
    (found,) = aot.predict_text(SCATTERED, V5E).collectives
    assert (found.opcode, found.bytes) == ("reduce-scatter", pytest.approx(X * 3 / 4))


def test_a_sum_that_is_kept_is_an_all_reduce():
    text = SCATTERED.replace("%sum, %me, %me", "%twice, %me, %me").replace(
        "  %me =", f"  %twice = {ROWS} add(%sum, %sum)\n  %me ="
    )
    (found,) = aot.predict_text(text, V5E).collectives
    assert (found.opcode, found.bytes) == ("all-reduce", pytest.approx(2 * X * 3 / 4))


def test_a_ragged_exchange_sends_what_it_is_given_once():
    text = f"""HloModule m

ENTRY %main (x: {ROWS}, room: {ROWS}, n: s32[4]) -> {ROWS} {{
  %x = {ROWS} parameter(0)
  %room = {ROWS} parameter(1)
  %n = s32[4] parameter(2)
  ROOT %y = {ROWS} ragged-all-to-all(%x, %room, %n, %n, %n, %n), replica_groups={{{{0,1,2,3}}}}
}}
"""
    (found,) = aot.predict_text(text, V5E).collectives
    assert found.bytes == pytest.approx(X * 3 / 4)


@pytest.mark.parametrize(
    ("opcode", "result", "share"),
    [
        ("all-to-all", ROWS, 3 / 4),
        ("reduce-scatter", "f32[1024,1024]", 3 / 4),
        ("collective-permute", ROWS, 1),
    ],
)
def test_a_chip_keeps_its_own_share_of_what_is_exchanged(opcode: str, result: str, share: float):
    text = f"""HloModule m

ENTRY %main (x: {ROWS}) -> {result} {{
  %x = {ROWS} parameter(0)
  ROOT %y = {result} {opcode}(%x), replica_groups={{{{0,1,2,3}}}}
}}
"""
    (found,) = aot.predict_text(text, V5E).collectives
    assert (found.opcode, found.bytes) == (opcode, pytest.approx(X * share))


@pytest.mark.parametrize(("precision", "peak"), [("default", "f32"), ("highest", "highest")])
def test_products_of_full_float32_are_slower_than_those_of_fewer_digits(precision: str, peak: str):
    n = 8192
    text = f"""HloModule m

ENTRY %main (a: f32[{n},{n}], b: f32[{n},{n}]) -> f32[{n},{n}] {{
  %a = f32[{n},{n}] parameter(0)
  %b = f32[{n},{n}] parameter(1)
  ROOT %y = f32[{n},{n}] dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, \
operand_precision={{{precision},{precision}}}
}}
"""
    assert H100.peaks["f32"] > H100.peaks["highest"]
    wanted = 2 * n**3 / H100.peaks[peak]
    assert aot.predict_text(text, H100).seconds == pytest.approx(wanted)


@pytest.mark.parametrize("n", [256, 16384])
def test_an_exchange_is_hidden_by_a_product_that_takes_longer(n: int):
    text = f"""HloModule m

ENTRY %main (x: {ROWS}, a: bf16[{n},{n}]) -> bf16[{n},{n}] {{
  %x = {ROWS} parameter(0)
  %a = bf16[{n},{n}] parameter(1)
  %sum = {ROWS} all-reduce-start(%x), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  %y = bf16[{n},{n}] dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %done = {ROWS} all-reduce-done(%sum)
  ROOT %z = (bf16[{n},{n}], {ROWS}) tuple(%y, %done)
}}
"""
    found = aot.predict_text(text, H100)
    product = max(2 * n**3 / H100.peaks["bf16"], 3 * 2 * n**2 / H100.hbm_bandwidth)
    hidden = product > found.asynchronous_seconds + found.collective_seconds > 0
    assert hidden == (n == 16384)
    assert found.collectives[0].asynchronous == hidden
    seconds = product + (0 if hidden else found.collective_seconds)
    assert found.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("card", "dtype", "peak"),
    [
        ("h100", "f8e4m3fn", 1979e12),
        ("h100", "f8e5m2", 1979e12),
        ("h100", "s8", 1979e12),
        ("h100", "u8", 1979e12),
        ("a100", "f8e4m3fn", 312e12),
        ("a100", "s8", 624e12),
        ("t4", "bf16", 8.1e12),
    ],
)
def test_numbers_of_eight_bits_are_multiplied_faster(card: str, dtype: str, peak: float):
    n = 8192
    text = f"""HloModule m

ENTRY %main (a: {dtype}[{n},{n}], b: {dtype}[{n},{n}]) -> f32[{n},{n}] {{
  %a = {dtype}[{n},{n}] parameter(0)
  %b = {dtype}[{n},{n}] parameter(1)
  ROOT %y = f32[{n},{n}] dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
"""
    assert aot.predict_text(text, aot.GPUS[card]).seconds == pytest.approx(2 * n**3 / peak)
