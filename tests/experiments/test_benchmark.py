"""The benchmark: who is timed when, what a ratio is, what is written, what is refused."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.benchmark import peers, rates, shapes
from experiments.benchmark.__main__ import LINE, main, next_command
from experiments.benchmark.data import random_store
from experiments.benchmark.options import MODELS, SUITES, Options
from experiments.benchmark.report import markdown, tables
from experiments.benchmark.results import Result, Row, Spread
from experiments.terminal.program import Stop
from polycom_jax import InputError
from polycom_jax.models import count_params


def test_every_suite_lists_its_cases_without_running_them():
    options = Options(passes=("forward",))
    for suite in set(SUITES) - {"tpu"}:  # which starts the compiler of a TPU
        cases = importlib.import_module(f"experiments.benchmark.{suite}").cases(options)
        assert cases
        assert {case.suite for case in cases} == {suite}


def test_suites_may_stand_first():
    for words in ("ops ffn --rounds 2", "--suites ops ffn --rounds 2"):
        options = LINE(Options(), words.split())
        assert (options.suites, options.rounds) == (("ops", "ffn"), 2)
    assert LINE(Options(), ["--rounds", "2"]).suites == ("ops",)


def test_the_next_command_names_what_is_left():
    assert "ffn attention loss train safety data tpu gpu generate" in next_command(Options())
    assert "--rounds" in next_command(Options(suites=SUITES))


def test_a_run_writes_numbers_tables_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["ops", "--shapes", "odd", "--activations", "poly_norm", "--passes", "both"]
    words += ["--peers", "implementations", "yardsticks", "copy", "liger"]
    words += ["--rounds", "2", "--sample-seconds", "1e-4", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["about"]["command"].startswith("python -m experiments.benchmark ops --shapes odd")
    assert record["about"]["jax"] == jax.__version__
    assert {"numpy", "commit", "cores", "device"} <= record["about"].keys()
    (result,) = record["results"]
    names = [row["name"] for row in result["rows"]]
    assert names[:3] == ["poly_norm", "poly_norm [reference]", "poly_norm [xla]"]
    assert {"relu2", "gelu", "silu", "copy of x"} <= set(names)
    assert "CUDA" in result["left_out"]["liger"] or "torch" in result["left_out"]["liger"]
    for row in result["rows"]:
        assert len(row["rounds"]) == 2
        assert min(row["rounds"]) > 0
        assert row["ratios"].keys() == {"poly_norm", "relu2"}
        assert row["numbers"].keys() == {"GB/s", "of copy"}
    # x and dy, y and dx, of 5 x 123 numbers of four bytes.
    first = result["rows"][0]
    moved = first["numbers"]["GB/s"] * 1e9 * first["seconds"]["median"]
    assert moved == pytest.approx(4 * 5 * 123 * 4)
    assert result["rows"][0]["ratios"]["poly_norm"]["median"] == 1
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| poly_norm [xla] |" in text
    assert "- left out: liger: " in text
    plots = {path.suffix for path in (tmp_path / "out" / "plots").iterdir()}
    assert plots == {".png", ".pdf"}
    shown = capsys.readouterr().out
    assert "ops: poly_norm both, 5 x 123 float32" in shown
    assert "about 0 s left" in shown
    assert "Next:" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["opps"], "Unknown suite 'opps'. Did you mean 'ops'?"),
        (["ops", "--peers", "torch"], "Unknown peer 'torch'."),
        (["--shapes", "huge"], "Unknown shape 'huge'."),
        (["--activations", "poly_nrom"], "Did you mean 'poly_norm'?"),
        (["--passes", "sideways"], "Unknown pass 'sideways'."),
        (["--model", "large"], "Unknown model 'large'."),
        (["--chips", "v9"], "Unknown chip 'v9'."),
        (["--rounds", "0"], "rounds=0 must be at least 1."),
        (["allocator", "--clock", "cpu"], "clock=cpu is nothing for the suite allocator"),
        (["ops", "card", "gpu", "--clock", "cpu"], "nothing for the suite card or gpu"),
        (["--sample-seconds", "0"], "sample_seconds=0.0 must be positive"),
        (["--dtype", "int8"], "int8"),
        (["--roundz", "3"], "Did you mean '--rounds'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_lists_the_suites(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "[SUITE ...]" in shown
    assert "safety (checkpoints" in shown


def test_a_peer_that_is_not_there_has_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    chosen, left_out = peers.split(("copy", "torch-eager", "hf-llama"), ("copy", "torch-eager"))
    assert chosen == ["copy"]
    assert left_out == {
        "torch-eager": "torch is not installed; see the extra bench, or pip install torch"
    }


def test_a_cpu_peer_is_not_compared_with_a_tpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert peers.unsupported_reason("torch-eager") == "JAX runs on tpu, where this peer does not"


def test_models_of_all_names_hold_equal_parameters_gated_or_not():
    for name in MODELS:
        options = Options(model=name)
        gated, plain = (count_params(shapes.model(options, a)) for a in ("swiglu", "relu2"))
        assert gated == plain
        assert shapes.batch_size(options) >= 1
    assert count_params(shapes.model(Options(), "swiglu")) == pytest.approx(5e6, rel=0.1)


def test_flags_reach_the_model():
    flags: dict[str, Any] = {"seq_len": 128, "dtype": "float32", "remat": "dots", "loss_chunk": 64}
    options = Options(model="dense-1b", implementation="reference", **flags)
    cfg = shapes.model(options, "poly_norm")
    assert (cfg.context_length, cfg.dtype, cfg.remat, cfg.loss_chunk) == (
        128,
        "float32",
        "dots",
        64,
    )
    assert cfg.activation_options.implementation == "reference"
    with pytest.raises(InputError, match="implementation"):
        shapes.model(Options(implementation="fastest"), "poly_norm")


def test_mfu_is_of_a_known_peak(monkeypatch: pytest.MonkeyPatch):
    class Device:
        platform = "gpu"
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr("jax.devices", lambda: [Device])
    assert rates.peak_flops("bfloat16")[0] == 989e12
    assert rates.peak_flops("float32")[0] is None
    Device.device_kind = "TPU v5 lite"
    assert rates.peak_flops("bfloat16")[0] == 197e12


def test_a_cpus_peak_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "SIZE", 64)
    rate, about = rates.peak_flops("float32")
    assert rate is not None
    assert rate > 0
    assert "measured" in about


def test_columns_that_do_not_fit_go_to_a_second_table():
    numbers = {f"number {i}": 1.0 for i in range(8)}
    row = Row("name", Spread.exact(1.0), {"name": Spread.exact(1.0)}, numbers)
    result = Result("ops", "case", (row,))
    assert len(tables(result, 200)) == 1
    narrow = tables(result, 60)
    assert len(narrow) > 1
    headings = [[str(column.header) for column in drawn.columns] for drawn in narrow]
    assert all(names[0] == "contestant" for names in headings)
    assert [name for names in headings for name in names[1:]] == ["/ name", "ms", *numbers]


def test_predictions_are_called_so():
    row = Row("name", Spread.exact(0.001))
    text = markdown({"command": "c"}, [Result("tpu", "case", (row,), kind="predicted")])
    assert "## tpu: case (predicted)" in text
    assert "| name | 1 |" in text


def test_the_random_store_is_one_that_batches_can_be_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("experiments.benchmark.data.TOKENS", 10_000)
    store = random_store(tmp_path, 300)
    assert store.num_tokens == 10_001
    assert store.tokens.max() < 300
    stream = store.tokens
    begins = np.flatnonzero(stream == store.eot)
    assert begins[0] == 0
    assert begins[-1] == len(stream) - 1
    assert store.num_documents == len(begins) - 1
    assert np.all(np.diff(begins) > 1)


def run_case(suite: str, options: Options) -> Result:
    case, *_ = importlib.import_module(f"experiments.benchmark.{suite}").cases(options)
    return case.run(lambda doing: None)


SMALL = {"model": "tiny", "batch_size": 1, "seq_len": 16, "rounds": 1, "sample_seconds": 1e-4}


@pytest.mark.parametrize(
    "suite", ["ffn", "attention", "loss", "data", pytest.param("generate", marks=pytest.mark.slow)]
)
def test_suites_run_without_torch(suite: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.benchmark.data.TOKENS", 10_000)
    result = run_case(
        suite,
        Options(
            **SMALL,
            passes=("both",),
            activations=("poly_norm",) if suite in ("ffn", "generate") else (),
            peers=("copy", "implementations"),
            loss_chunk=5,
        ),
    )
    assert len(result.rows) >= (1 if suite in ("ffn", "generate") else 2)
    assert result.references
    assert result.columns


def test_a_store_as_large_as_the_papers_corpus_is_opened_without_reading_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("experiments.benchmark.large_data.SHARDS", 300)
    _, case = importlib.import_module("experiments.benchmark.data").cases(Options(**SMALL))
    result = case.run(lambda doing: None)
    assert [row.name for row in result.rows] == [
        *("batch of step 0", "batch of step 1,000,000", "opening"),
    ]
    assert "3,000,000,001" in result.case


@pytest.mark.parametrize("activation", ["poly_norm", "poly_relu", "poly_norm_glu"])
@pytest.mark.parametrize("which", ["forward", "backward", "both"])
def test_pytorch_formulas_agree_with_ours(activation: str, which: Any):
    pytest.importorskip("torch")
    result = run_case(
        "ops",
        Options(
            shapes=("odd",),
            activations=(activation,),
            passes=(which,),
            peers=("torch-eager", "torch-checkpoint"),
            rounds=1,
            sample_seconds=1e-4,
        ),
    )
    names = [row.name for row in result.rows]
    assert names == [activation, f"torch-eager {activation}", f"torch-checkpoint {activation}"]


@pytest.mark.parametrize("suite", ["ffn", "attention", "loss"])
def test_pytorch_blocks_agree_with_ours(suite: str):
    pytest.importorskip("torch")
    result = run_case(suite, Options(**SMALL, passes=("both",), peers=("torch-eager",)))
    assert any("torch-eager" in row.name for row in result.rows)


@pytest.mark.parametrize("activation", ["poly_norm", "swiglu"])
def test_transformers_writes_the_same_tokens(activation: str, own_modules: None):
    pytest.importorskip("torch")
    result = run_case("generate", Options(**SMALL, activations=(activation,)))
    ours, theirs = result.rows
    assert (ours.name, theirs.name) == ("generate", "hf-generate")
    assert theirs.ratios.keys() == {"generate"}
    assert ours.numbers["tokens/s"] == pytest.approx(8 / ours.seconds.median)
    assert "100 % of the peer's tokens are ours" in result.notes[0]


def test_a_prompt_and_a_token_do_not_fit_one_place():
    with pytest.raises(InputError, match="seq_len=1 has no place"):
        run_case("generate", Options(**{**SMALL, "seq_len": 1}))


def test_a_wrong_formula_is_found_out(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("experiments.benchmark.formulas_torch.EPS", 0.1)
    options = Options(shapes=("odd",), peers=("torch-eager",), passes=("forward",), rounds=1)
    with pytest.raises(Stop, match="torch-eager poly_norm does not compute what poly_norm does"):
        run_case("ops", options)


@pytest.mark.slow
def test_training_steps_are_measured_here_and_in_a_fresh_process():
    options = Options(**SMALL, activations=("swiglu",), peers=())
    result = run_case("train", options)
    (row,) = result.rows
    assert {"tokens/s", "MFU, PaLM", "MFU, causal"} <= row.numbers.keys()
    assert 0 < row.numbers["MFU, causal"] < row.numbers["MFU, PaLM"]
    assert row.numbers["first step s"] > row.numbers["compile s"] > 0
    assert row.numbers["peak MiB"] > row.numbers["imports MiB"] > 0


@pytest.mark.slow
def test_hugging_face_starts_from_our_loss_and_gradient_norm(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from experiments.benchmark.llama_torch import HuggingFace
    from experiments.benchmark.steps import Ours

    def as_it_is(f: Callable[..., Any]) -> Callable[..., Any]:
        return f

    monkeypatch.setattr("experiments.benchmark.formulas_torch.compiled", as_it_is)
    options = Options(**SMALL)
    ours, theirs = (
        step.numbers(step()) for step in (Ours(options, "swiglu"), HuggingFace(options))
    )
    assert theirs == pytest.approx(ours, rel=1e-4)
