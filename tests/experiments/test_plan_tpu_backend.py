"""Whole plans of two files, by the compiler."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments.plan.__main__ import main
from experiments.run.planned import ROLLED, find_slice
from polycom_jax import compile_ahead as aot
from polycom_jax import poly_norm

CONFIGS = Path(__file__).resolve().parents[2] / "tpu_configs"

pytestmark = pytest.mark.tpu_backend


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        pytest.param("v4-32-dense-1b", (0.7, 1.3), marks=pytest.mark.exhaustive),
        pytest.param("v5p-128-dense-1b", (0.4, 0.7), marks=pytest.mark.exhaustive),
    ],
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


def test_rolled_loops_change_machine_code_and_no_estimate():
    aot.without_tpu()
    where = find_slice("v5e:2x2").devices[0]
    shapes = (((4096, 8192), jnp.bfloat16), ((4,), jnp.float32))
    x, coeffs = aot.place([jax.ShapeDtypeStruct(*shape) for shape in shapes], where)

    def both(dy: Any, *arguments: Any) -> Any:
        y, pull = jax.vjp(partial(poly_norm, implementation="tpu"), *arguments)
        return y, pull(dy)

    lowered = jax.jit(both).lower(x, x, coeffs)
    plain, rolled = (aot.predict(aot.compile(lowered, compiler_options=o)) for o in ({}, ROLLED))
    assert rolled.code_bytes < plain.code_bytes
    assert rolled.seconds == plain.seconds
    assert rolled.temporary_bytes == plain.temporary_bytes
