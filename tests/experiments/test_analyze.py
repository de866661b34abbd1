"""Two runs side by side, from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import pretrain
from experiments.analyze import __main__ as analyze


def test_runs_are_measured_side_by_side(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs = {}
    for activation in ("poly_norm", "swiglu"):
        runs[activation] = str(tmp_path / activation)
        words = ["--config", str(settings), "--workdir", runs[activation]]
        words += ["--activation", activation, "--steps", "2", "--eval-every", "2"]
        assert pretrain.main(words) == 0
    out = tmp_path / "analysis"
    assert analyze.main([*runs.values(), "--tokens", "64", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Ranks of weight matrices" in printed
    report = (out / "report.md").read_text()
    assert "| matrix | rank | poly_norm | swiglu |" in report
    found = json.loads((out / "results.json").read_text())["runs"]
    inside = found["poly_norm"]["inside"]
    assert np.shape(inside["cka"]) == np.shape(inside["cosine"]) == (3, 3)
    np.testing.assert_allclose(np.diag(inside["cka"]), 1)
    assert len(inside["hidden"]) == 2
    assert "ffn/w_gate" in found["swiglu"]["weights"]
    assert "ffn/w_gate" not in found["poly_norm"]["weights"]
    for figure in ("ranks", "spectra", "cosine", "cka", "activity", "gradients", "curves"):
        assert (out / "plots" / f"{figure}.png").stat().st_size > 1000

    assert analyze.main([]) == 2
    assert analyze.main([str(tmp_path / "nothing")]) == 2
    assert "no run in" in capsys.readouterr().err
