"""Suites that take any row of the table: what becomes of one that a model or a peer cannot have."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.benchmark import generate, peers, shapes
from experiments.benchmark.options import Options
from polycom_jax import ACTIVATIONS, InputError
from polycom_jax.interop.huggingface.config import family_of

SMALL = Options(model="small-5m")


def quiet(text: str) -> None:
    del text


def test_rows_that_a_model_has_no_room_for_are_left_out_of_a_contest():
    found, left_out = shapes.fitting(SMALL, ACTIVATIONS)
    assert {*found, *left_out} == {*ACTIVATIONS}
    assert [*left_out] == ["evonorm_s0"]
    with pytest.raises(InputError, match="small-5m: evonorm_s0: groups=64 must divide"):
        shapes.fitting(SMALL, ("evonorm_s0",))


def test_a_row_that_a_model_has_no_room_for_ends_no_other_case():
    result = generate._run(SMALL, "evonorm_s0", 1, quiet)
    assert result.rows == ()
    assert "groups=64 must divide the hidden width 1032" in result.left_out[generate.OURS]


def test_a_model_without_pytorch_code_is_generated_by_us_alone(monkeypatch: pytest.MonkeyPatch):
    ours = SimpleNamespace(tokens=lambda: np.zeros((1, 4), np.int32), wait=None)
    monkeypatch.setattr(generate, "Ours", lambda *words: ours)
    monkeypatch.setattr(peers, "split", lambda *words: ([generate.HF], {}))
    monkeypatch.setattr(generate, "_exported", lambda cfg, *words: family_of(cfg))
    monkeypatch.setattr(generate, "hold", lambda *words, left_out, **named: left_out)
    left_out: Any = generate._run(Options(model="tiny", seq_len=8), "asqu", 1, quiet)
    assert "Unknown activation in PyTorch 'asqu'" in left_out[generate.HF]
