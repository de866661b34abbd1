"""Whole plans of two files, by the compiler."""

import json
from pathlib import Path

import pytest

from experiments.plan.__main__ import main

CONFIGS = Path(__file__).resolve().parents[2] / "tpu_configs"

pytestmark = pytest.mark.tpu_backend


@pytest.mark.parametrize(
    ("name", "seconds"), [("v4-32-dense-1b", (0.7, 1.3)), ("v5p-128-dense-1b", (0.4, 0.7))]
)
def test_a_plan_fits_and_has_no_problems(tmp_path: Path, name: str, seconds):
    path = tmp_path / "plan.json"
    assert main([str(CONFIGS / f"{name}.yaml"), "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["problems"] == []
    assert found["parameters"] == 1_345_423_456
    assert seconds[0] < found["seconds"] < seconds[1]
    assert sum(found["parts"].values()) == pytest.approx(1, abs=0.01)
    assert not any("how often the loop" in what for what in found["not_estimated"])
    assert {c["opcode"] for c in found["collectives"]} >= {"all-gather"}
