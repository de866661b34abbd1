"""Runs that keep a moving average of their weights, from training to what reads it."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.analyze import __main__ as analyze
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.generate import main as generate
from experiments.run.folder import Workdir
from experiments.run.metrics import read_metrics
from experiments.run.model_loading import load_model, load_trained

pytestmark = pytest.mark.slow  # two runs

EMA = ("--optim.ema-decay", "0.5")


def test_it_is_measured_kept_resumed_bit_for_bit_and_read_where_asked(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *EMA) == 0
    assert run(parts, *EMA, "--optim.decay-steps", "6", "--steps", "4") == 0
    assert run(parts, *EMA, "--optim.decay-steps", "6", "--steps", "6") == 0
    one, two = (load_trained(Workdir(root), weights="ema") for root in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    last = read_metrics(whole / "metrics.jsonl")[-1]
    assert last["ema_heldout_loss"] > last["heldout_loss"]
    assert {"ema_bits_per_byte", "bits_per_byte"} <= last.keys()
    assert generate([str(whole), "--weights", "ema", "--max-new-tokens", "3"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(whole), "--weights", "ema", "--json", "-", *_text(whole)]) == 0
    assert f'"loss": {last["ema_heldout_loss"]:.4f}'[:-1] in capsys.readouterr().out
    out = tmp_path / "folder"
    assert convert.main([str(whole), "--weights", "ema", "--out", str(out)]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_model(out).params, one.params)
    last_of, averaged = (_norms(whole, weights, tmp_path / weights) for weights in ("last", "ema"))
    assert last_of.keys() == averaged.keys()
    assert all(last_of[place] != averaged[place] for place in last_of)


def _norms(root: Path, weights: str, out: Path) -> dict[str, object]:
    """What `analyze` finds of the last checkpoint, both as it is opened and as a step."""
    words = [str(root), "--weights", weights, "--steps", "6", "--tokens", "64", "--out", str(out)]
    assert analyze.main([*words, "--untrained", "False"]) == 0
    found = json.loads((out / "results.json").read_text())["runs"]["whole"]
    (step,) = found["along"]
    assert step["step"] == 6
    return {"opened": found["gradients"], "step": {k: v for k, v in step.items() if k != "step"}}


def _text(root: Path) -> list[str]:
    return ["--data", str(Workdir(root).read_config().data.source)]


def test_a_run_without_one_says_so(whole: Path, capsys: pytest.CaptureFixture[str]):
    assert generate([str(whole), "--weights", "ema"]) == 2
    assert f"--weights ema: {whole} holds none, as its optim.ema_decay" in capsys.readouterr().err
