"""What studies of training have beside their fits: all of them at once, gradients, few points."""

import json
import math
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from experiments.run.signals import StopRequest
from experiments.sobolev import __main__ as door
from experiments.sobolev import choice, fit
from experiments.sobolev.__main__ import main
from experiments.sobolev.mlp import mlp_of_size
from experiments.sobolev.options import QUICK_TRAIN
from experiments.sobolev.store import Store, findings
from experiments.sobolev.train import Study, perceptrons
from polycom_jax._errors import require


def test_all_runs_what_is_committed_in_folders_of_its_own_and_ends_with_the_first_that_fails(
    monkeypatch, tmp_path: Path, capsys
):
    ran: list[tuple[Path, bool]] = []

    def run(options, workdir: Path, command: str, display) -> None:
        ran.append((workdir, "--quick" in command))
        require(workdir.name != "refine", "no.")

    program: Any = jax.jit(lambda x: x + 1)
    program(1.0)
    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(run=run))
    assert main(["all", "--quick", "--out", str(tmp_path)]) == 2
    assert ran == [
        (tmp_path / name, True) for name in ("rates", "train", "h1", "samples", "refine")
    ]
    assert program._cache_size() == 0  # what one study has compiled, the next does not keep
    assert main(["all", "--nonsense"]) == 2
    monkeypatch.setattr(door, "RUNS", {"rates": door.RUNS["rates"]})
    capsys.readouterr()
    assert main(["all", "--quick", "--out", str(tmp_path)]) == 0
    assert "total: 0 s, 0 s of processor time" in capsys.readouterr().out  # nothing ran


def test_all_takes_the_options_of_the_committed_runs(monkeypatch, tmp_path: Path):
    ran: dict[str, object] = {}
    for run in door.RUNS.values():
        assert run.study in door.STUDIES
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name: SimpleNamespace(
            run=lambda options, workdir, command, display: ran.update({workdir.name: options})
        ),
    )
    assert main(["all", "--out", str(tmp_path)]) == 0
    assert list(ran) == list(door.RUNS)
    for name, options in ran.items():
        default = door.STUDIES[door.RUNS[name].study].default.sobolev
        changed = {
            field.name: getattr(options, field.name)
            for field in fields(default)
            if getattr(options, field.name) != getattr(default, field.name)
        }
        expected = {
            "h1": {"loss": "h1", "sizes": (300,), "beside": str(tmp_path / "train/train.csv")},
            "pitch": {"extent": 0.125},
            "gradients": {"extent": 0.125, "loss": "h1"},
        }
        assert changed == expected.get(name, {})


def test_the_loss_of_sobolev_training_is_the_squared_norm_of_h1():
    mlp = mlp_of_size("gelu", 60, dim=2, layers=2)
    params, x = mlp.init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (5, 2))
    residual = partial(mlp.apply, params)
    slopes = jax.vmap(jax.grad(lambda point: residual(point[None])[0]))(x)
    loss = fit._loss(mlp, params, x, residual(x) + 1, slopes + 2.0)
    assert loss == pytest.approx(9, rel=1e-5)  # float32


@pytest.mark.slow
def test_sobolev_training_fits_gradients_better(tmp_path: Path):
    options = replace(QUICK_TRAIN, targets=("waves:2",), dim=1, points=512, cells=2)
    errors, mlp = {}, mlp_of_size("gelu", 60, dim=1, layers=1)
    for name in ("l2", "h1"):
        study = Study(replace(options, loss=name), Store(tmp_path, "t"), StopRequest(1.0), print)
        runs = fit.Runs.of([(0.01, 0, seed) for seed in range(2)])
        how = fit.Fit(mlp, steps=100, batch_size=64)
        state = how.advance(how.start(runs), runs, study.data, 0, 100)
        errors[name] = [error["h1"] for error in study.errors(mlp, state.params, runs)]
    assert max(errors["h1"]) < min(errors["l2"])


@pytest.mark.slow
def test_more_points_bring_smaller_errors(tmp_path: Path):
    words = "samples --quick --activations gelu --dim 1 --points 256 --samples 4 256 --sizes 60"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "samples.json").read_text())["summary"]
    few, many = (next(row["l2"] for row in rows if row["size"] == size) for size in (4, 256))
    assert many < few


def test_programs_of_a_network_are_gone_behind_its_cell(monkeypatch, tmp_path: Path):
    # A process had no memory maps left for further programs after some eighty networks.
    program: Any = jax.jit(lambda x: x + 1)

    def cell(self, each, tell) -> dict[str, object]:
        program(1.0)
        assert program._cache_size() == 1
        return {}

    monkeypatch.setattr(Study, "_cell", cell)
    study = Study(QUICK_TRAIN, Store(tmp_path, "t"), StopRequest(1.0), print)
    study.run(perceptrons(QUICK_TRAIN)[:2], lambda *told: None)
    assert program._cache_size() == 0


def test_a_learning_rate_at_which_fits_fail_is_not_taken():
    # Three very good fits hid the fourth, and the rate was taken: it failed in all of the results.
    found = {0.1: (0.2, 0.3, 0.2, 0.3), 1.0: (0.01, 0.02, 0.01, 9.0), 3.0: (math.nan, 2, 2, 2)}
    rows = [
        choice.tried(rate, [{"l2": error} for error in errors], "l2", seeds=1)
        for rate, errors in found.items()
    ]
    assert rows[1]["l2"] < rows[0]["l2"]
    assert [row["failed"] for row in rows] == [0, 1, 4]
    assert choice.best(rows, "l2") == 0
    assert choice.best([rows[1], rows[2]], "l2") == 0  # where all have failures: the fewest


def test_what_a_report_found_is_shown():
    listed = "# Title\n\n    command\n\n- One.\n- Two.\n\n## Rows\n\n| a |"
    assert findings(listed) == "- One.\n- Two."
    assert findings("# Title\n\nfacts\n\n## Best\n\nThis.\n\n## Rest\n\nThat.") == "Best\n\nThis."
