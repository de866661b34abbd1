"""What studies of training have beside their fits: all of them at once, gradients, few points."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from experiments.run.signals import StopRequest
from experiments.sobolev import fit
from experiments.sobolev.__main__ import main
from experiments.sobolev.mlp import mlp_of_size
from experiments.sobolev.options import QUICK_TRAIN
from experiments.sobolev.store import Store, findings
from experiments.sobolev.train import Study
from polycom_jax._errors import require


def test_all_runs_every_study_in_a_folder_of_its_own_and_ends_with_the_first_that_fails(
    monkeypatch, tmp_path: Path
):
    ran: list[tuple[Path, bool]] = []

    def run(options, workdir: Path, command: str, display) -> None:
        ran.append((workdir, "--quick" in command))
        require(workdir.name != "refine", "no.")

    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(run=run))
    assert main(["all", "--quick", "--out", str(tmp_path)]) == 2
    assert ran == [(tmp_path / name, True) for name in ("rates", "train", "samples", "refine")]
    assert main(["all", "--nonsense"]) == 2


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


def test_what_a_report_found_is_shown():
    listed = "# Title\n\n    command\n\n- One.\n- Two.\n\n## Rows\n\n| a |"
    assert findings(listed) == "- One.\n- Two."
    assert findings("# Title\n\nfacts\n\n## Best\n\nThis.\n\n## Rest\n\nThat.") == "Best\n\nThis."
