"""Learning rates at several widths: what is read off the grids, and one small study."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.compare import __main__ as compare
from experiments.compare.across.transfer import TransferConfig, Transferring, _found, sections
from experiments.compare.runs import Run, RunKey
from experiments.run.rate_search import FIRST_SEED, Search
from polycom_jax import ACTIVATIONS, InputError

RATES = (0.001, 0.002, 0.004, 0.008)
NARROW = Search(RATES, (3.0, 2.5, 2.0, 2.1), 0.004, False)


def test_a_width_that_a_row_cannot_have_is_refused_before_anything_is_trained():
    with pytest.raises(InputError, match=r"gdn: groups=8 .* width 64; take multiples of 96 as"):
        TransferConfig(activations=("swiglu", "gdn"))
    TransferConfig(activations=ACTIVATIONS, widths=(96, 192, 288))


def test_what_a_wide_model_loses_by_the_narrow_one_s_rate():
    wide = Search(RATES, (1.5, 1.6, 1.9, math.inf), 0.001, True)
    found = _found("swiglu", 256, "standard", wide, NARROW)
    assert found.octaves == -2
    assert found.cost_of_carrying == pytest.approx(0.4)
    best, losses = sections([found])
    assert best.rows[0][3:5] == ("0.001 (at the edge)", "-2")
    assert "on the seeds that chose the best, so that it is never below 0" in best.notes[0]
    assert losses.rows[0][1:] == ("1.5000", "1.6000", "1.9000", "inf")


def test_a_grid_is_tried_with_seeds_of_the_search_and_the_narrow_model_s_rate_is_in_it():
    asked: list[RunKey] = []

    def read(key: RunKey) -> Run:
        asked.append(key)
        loss = abs(math.log2(key.rate / 0.002)) + 0.5 * (key.seed - FIRST_SEED)
        lost = key.rate == 0.002 and key.seed > FIRST_SEED
        return Run(key, lost, () if lost else (loss,), (), (), (), (), 1.0)

    config = TransferConfig(learning_rates=RATES, seeds=2)
    display = SimpleNamespace(note=lambda text: None)
    study: Any = SimpleNamespace(config=config, runs=SimpleNamespace(read=read), display=display)
    found = Transferring.grid(study, "relu", 64, "mup", carried=0.003)
    assert found.rates == (0.001, 0.002, 0.003, 0.004, 0.008)
    assert found.best == 0.003  # a mean of 0.585 and 1.085; of the rate 0.002 a run diverged
    assert found.losses[:2] == (1.25, math.inf)
    assert {key.seed for key in asked} == {FIRST_SEED, FIRST_SEED + 1}
    assert {(key.arm, key.lengths) for key in asked} == {("relu-64-mup", (160,))}


def test_the_wide_models_differ_in_the_parametrization_alone():
    config = TransferConfig()
    plain, mup = (config.model("poly_norm", 256, kind) for kind in ("standard", "mup"))
    assert (plain.num_heads, plain.hidden_width, plain.width_multiple) == (8, 1020, 1)
    assert mup.width_multiple == 4
    assert config.model("poly_norm", 64, "mup").width_multiple == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (64,)}, "two or more ascending multiples of 32"),
        ({"widths": (64, 100)}, "two or more ascending multiples of 32"),
        ({"activations": ("swiglo",)}, "Did you mean 'swiglu'"),
        ({"learning_rates": (0.1, 0.01)}, "positive and ascending"),
    ],
)
def test_what_makes_no_study_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        TransferConfig(**fields)


@pytest.mark.slow
def test_a_study_resumes_and_reports(tmp_path, capsys):
    words = ["--activations", "relu", "--widths", "32", "64", "--steps", "8", "--seeds", "1"]
    words += ["--learning-rates", "0.004", "0.008", "--seq-len", "16", "--heldout-tokens", "64"]
    words += ["--out", str(tmp_path)]
    assert compare.main(["transfer", *words]) == 0
    found = json.loads((tmp_path / "transfer.json").read_text())["found"]
    assert [(f["width"], f["parametrization"]) for f in found] == [
        (32, "standard"), (64, "standard"), (64, "mup"),
    ]  # fmt: skip
    assert found[1]["search"] != found[2]["search"]
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")}
    capsys.readouterr()
    assert compare.main(["transfer", *words]) == 0
    assert runs == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")}
    assert "lost by carrying" in capsys.readouterr().out
    assert "- commit of the runs: " in (tmp_path / "transfer.md").read_text()
