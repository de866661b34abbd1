"""Which checkpoint of a run is read."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from shapes import TINY

from experiments import generate
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.run import model_loading
from experiments.run.checkpoint_names import read_named, step_of
from experiments.run.config import default_config
from experiments.run.folder import Workdir
from experiments.run.model_loading import Model
from experiments.run.resuming import function_of
from polycom_jax import InputError
from polycom_jax.data import DataConfig
from polycom_jax.interop.huggingface import Generation
from polycom_jax.training import Checkpoints, start_state


def test_the_best_of_checkpoints_without_a_score_is_refused_and_not_the_latest(tmp_path: Path):
    state = start_state({"w": jnp.ones(2)}, optax.sgd(1.0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
        checkpoints.wait()
        with pytest.raises(InputError, match="has a held-out loss; take 'latest'"):
            step_of(checkpoints, "best")
        checkpoints.save(3, state, score=2.5)
        checkpoints.save(4, state)
        checkpoints.wait()
        assert step_of(checkpoints, "best") == 3
        assert step_of(checkpoints, "latest") is None


def test_the_average_is_read_where_it_is_asked_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[dict[str, Any]] = []

    def noting(saved: object, name: str, shapes: object, **how: Any) -> tuple[int, object]:
        asked.append({"name": name, "averaged": how["averaged"]})
        return 6, shapes

    shutil.copytree(whole, tmp_path / "w", ignore=shutil.ignore_patterns(".lock"))
    workdir = Workdir(tmp_path / "w")
    config = workdir.read_config()
    averaging = replace(config, optim=replace(config.optim, ema_decay=0.5))
    workdir.write_config(averaging, workdir.record())
    monkeypatch.setattr(model_loading, "read_named", noting)
    model_loading.load_trained(workdir, "4")
    averaged = model_loading.load_model(workdir.root, "best", weights="ema")
    assert averaged.origin == f"{workdir.root}, checkpoint of step 6, moving average"
    assert replace(averaged, weights="last").origin == f"{workdir.root}, checkpoint of step 6"
    assert asked == [{"name": "4", "averaged": False}, {"name": "best", "averaged": True}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "ema"], "holds none, as its optim.ema_decay is none"),
        (["--checkpoint", "5"], "no checkpoint of step 5"),
    ],
)
def test_every_program_reads_the_weights_that_it_is_told_to(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    for program, more in (
        (generate, []),
        (evaluate, ["--data", "stdlib"]),
        (convert, ["--out", str(tmp_path / "new")]),
    ):
        assert program.main([str(whole), *more, *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "of_a_folder", "trained_here"),
    [(None, True, False), (0, True, False), (3, True, True), (0, False, True), (3, False, True)],
)
def test_weights_are_of_this_project_where_it_has_trained_them(
    step: int | None, of_a_folder: bool, trained_here: bool
):
    said = Generation({}) if of_a_folder else None
    model = Model(TINY, {}, None, DataConfig(), Path(), step, generation=said)
    assert model.trained_here is trained_here


def test_a_checkpoint_is_of_all_that_says_which_function_its_parameters_are():
    config = default_config("tiny")
    mup = {"parametrization": "mup"}
    others = ({}, mup, mup | {"mup_base_width": 32}, {"rope_theta": 9.0}, {"norm_eps": 0.1})
    found = [function_of(replace(config, model=replace(config.model, **one))) for one in others]
    assert all(found.count(one) == 1 for one in found)
    model, run = replace(config.model, remat="full", init="olmo"), replace(config.run, seed=7)
    assert function_of(replace(config, model=model, run=run)) == found[0]


def test_the_best_is_another_one_where_its_run_has_deleted_the_first_meanwhile():
    bests, kept = iter([2, 5]), [5, 6]
    here = {"folder": "run", "best_step": lambda: next(bests)}

    def restore_params(shapes: object, *, step: int) -> tuple[int, object]:
        if step not in kept:
            raise InputError(f"There is no checkpoint of step {step}")
        return step, shapes

    saved: Any = SimpleNamespace(**here, restore_params=restore_params)
    assert read_named(saved, "best", "values") == (5, "values")  # pyright: ignore
    with pytest.raises(InputError, match="step 3"):
        read_named(saved, "3", "values")  # pyright: ignore
