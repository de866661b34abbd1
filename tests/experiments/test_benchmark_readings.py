"""Predictions of the suites tpu and gpu: kept for another run, one by one, and side by side."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments.benchmark import __main__ as program
from experiments.benchmark import readings as kept
from experiments.benchmark.options import Options
from experiments.benchmark.predicted import predict_each
from experiments.benchmark.readings import Readings, program_key
from experiments.benchmark.results import Result, Row, Spread
from experiments.benchmark.side_by_side import side_by_side
from experiments.terminal.progress import Display
from polycom_jax import InputError
from polycom_jax import compile_ahead as aot

TEXT = """HloModule m

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  ROOT %y = f32[1024]{0} copy(%x)
}
"""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that the compiler, which is not called, was given."""
    given: list[Any] = []
    prediction = aot.predict_text(TEXT, aot.GPUS["h100"], peak_hbm_bytes=7, compiler="c 1")
    monkeypatch.setattr(kept.aot, "compile", lambda lowered, **xla: given.append(lowered))
    monkeypatch.setattr(kept.aot, "predict", lambda program: prediction)
    monkeypatch.setattr(kept, "compiler_version", lambda chip: "c 1")
    return given


def program_of(factor: float) -> jax.stages.Lowered:
    return jax.jit(lambda x: factor * x).lower(jax.ShapeDtypeStruct((8,), jnp.float32))


def test_what_a_file_holds_is_not_compiled_again(tmp_path: Path, compiled: list[Any]):
    path = tmp_path / "new" / "readings.jsonl"
    first = Readings(path).predict(program_of(2), "h100", {})
    again = Readings(path).predict(program_of(2), "h100", {})
    assert len(compiled) == 1
    assert (again.seconds, again.kernels) == (first.seconds, first.kernels)
    assert (again.peak_hbm_bytes, again.compiler, again.chip.name) == (7, "c 1", "h100")


@pytest.mark.parametrize(
    "other", [(3, "h100", {}), (2, "a100", {}), (2, "h100", {"xla_gpu_enable_triton_gemm": True})]
)
def test_another_program_chip_or_option_is(other: Any, tmp_path: Path, compiled: list[Any]):
    readings = Readings(tmp_path / "readings.jsonl")
    readings.predict(program_of(2), "h100", {})
    factor, chip, xla = other
    readings.predict(program_of(factor), chip, xla)
    assert len(compiled) == 2


def test_so_is_the_same_one_by_another_predictor_compiler_or_under_other_flags(
    monkeypatch: pytest.MonkeyPatch, compiled: list[Any]
):
    keys = {program_key(program_of(2), "h100", {})}
    monkeypatch.setattr(kept, "_predictor", lambda: "changed")
    keys.add(program_key(program_of(2), "h100", {}))
    monkeypatch.setattr(kept, "compiler_version", lambda chip: "c 2")
    keys.add(program_key(program_of(2), "h100", {}))
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    keys.add(program_key(program_of(2), "h100", {}))
    assert len(keys) == 4


def test_a_line_cut_off_in_the_middle_costs_that_reading_alone(tmp_path: Path, compiled: list[Any]):
    path = tmp_path / "readings.jsonl"
    for factor in (2, 3):
        Readings(path).predict(program_of(factor), "h100", {})
    path.write_bytes(path.read_bytes()[:-20])
    for factor in (2, 3, 3):
        Readings(path).predict(program_of(factor), "h100", {})
    assert len(compiled) == 3


def test_one_that_fails_does_not_end_the_others(tmp_path: Path, compiled: list[Any]):
    def raises(error: Exception) -> Callable[[], jax.stages.Lowered]:
        def lowered() -> jax.stages.Lowered:
            raise error

        return lowered

    lower = {
        "broken": raises(RuntimeError("the compiler\nfell over")),
        "unfit": raises(InputError("too large")),
        "good": lambda: program_of(2),
    }
    told: list[str] = []
    found = predict_each(lower, Options(out=str(tmp_path)), "h100", {}, told.append)
    assert list(found.predictions) == ["good"]
    assert found.left_out == {"unfit": "too large"}
    assert found.failures == ("broken: RuntimeError: the compiler fell over",)
    assert told[0] == "compiling broken (1 of 3)"
    assert "compiling good (3 of 3, about 0 s left of this case)" in told


def test_without_a_terminal_lines_say_what_is_being_done(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(program.time, "monotonic", lambda: next(clock))
    console = Console(file=io.StringIO())
    monkeypatch.setattr(Display, "live", False)
    display = Display.__new__(Display)
    display.console, display._bar, display._status = console, None, None
    tell = program._telling(display, "gpu: ffn")
    for doing in ("soon", "later", "just after"):
        tell(doing)
    assert console.file.getvalue() == "  gpu: ffn: later\n"  # type: ignore[attr-defined]


def case(chip: str, which: str, **seconds: float) -> Result:
    rows = tuple(
        Row(
            name,
            Spread.exact(s),
            {"gelu": Spread.exact(s / seconds["gelu"])},
            {"reads of x": 2.004, "writes of x": 1.26},
        )
        for name, s in seconds.items()
    )
    title = f"8 x 8, {which}, {chip}"
    return Result("gpu", title, rows, kind="predicted", chip=chip, work="8 x 8", which=which)


def test_chips_stand_side_by_side_with_sums_of_passes():
    results = [
        case("t4", "forward", gelu=1e-3, rest=2e-3),
        case("t4", "backward", gelu=3e-3, rest=4e-3),
        case("h100", "forward", gelu=1e-3, rest=1e-3),
        case("h100", "backward", gelu=1e-3),
        Result("ops", "measured", ()),
    ]
    (section,) = side_by_side(results)
    assert section.title == "gpu: 8 x 8, side by side"
    assert section.columns == (
        *("contestant", "t4, reads + writes", "h100, reads + writes"),
        *("t4, ms", "/ gelu", "h100, ms", "/ gelu"),
    )
    assert section.rows == (
        ("gelu", "2 + 1.3, 2 + 1.3", "2 + 1.3, 2 + 1.3", "4", "1.000", "2", "1.000"),
        ("rest", "2 + 1.3, 2 + 1.3", "2 + 1.3, none", "6", "1.500", "", ""),
    )
    assert side_by_side(results[:1]) == ()
