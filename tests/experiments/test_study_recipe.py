"""One recipe for all arms of a study: what it takes, what it refuses, and where it is kept."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from scaling_folders import study
from test_compare_findings import SMALL, TWO

from experiments.compare import __main__ as compare
from experiments.compare import config, train
from experiments.compare.across.cells import read_cell, read_cells, stored_config
from experiments.compare.across.grid import SCALINGS, queue
from experiments.compare.across.leaderboard import LeaderboardConfig, study_of
from experiments.compare.across.report import about
from experiments.compare.comparing import Comparing
from experiments.compare.recipe import worded
from experiments.compare.runs import RunKey
from experiments.compare.studies import STUDIES
from experiments.terminal.progress import Display
from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.data import prepare, train_batches
from polycom_jax.training import OptimConfig
from polycom_jax.training.weight_average import AveragedState

MUON = "optim.optimizer=muon"
LOSSES = {"swiglu": lambda d: 1.6, "poly_norm": lambda d: 1.5}


def study_with(*words: str, name: str = "activations") -> config.CompareConfig:
    return config.from_command([name, "--recipe", *words])


def test_a_recipe_is_that_of_all_arms_and_of_nothing_else():
    plain = config.from_command(["activations"])
    found = study_with(MUON, "optim.z-loss=1e-4", "model.logit_softcap=30", "optim.clip_norm=None")
    assert found.common.optim == replace(
        plain.common.optim, optimizer="muon", z_loss=1e-4, clip_norm=None
    )
    assert found.common.model == replace(plain.common.model, logit_softcap=30.0)
    for arm in found.chosen.arms:
        assert arm.optimizer(found.common.optim).optimizer == "muon"
        assert arm.model(found.common.model).logit_softcap == 30
    assert plain.changes == {}


def test_a_recipe_is_what_it_says_and_not_how_it_is_written():
    found = study_with("optim.z_loss=0.0001", "optim.decay_roles=matrix,norm", "optim.b1=0.9")
    assert found.changes == {"optim.z_loss": 1e-4, "optim.decay_roles": ("matrix", "norm")}
    assert study_with(*worded(found.changes)).changes == found.changes
    assert study_with("optim.decay_roles=").common.optim.decay_roles == ()
    assert study_with("optim.optimizer=lion", MUON).changes == {"optim.optimizer": "muon"}
    stored = json.loads(json.dumps(found.changes))  # as settings.json has it
    assert study_with(*worded(stored)).changes == found.changes


@pytest.mark.parametrize(
    ("name", "word", "told"),
    [
        ("activations", "optim.optimizer=moun", "Did you mean 'muon'"),
        ("activations", "optim.optimiser=muon", "Did you mean 'optim.optimizer'"),
        ("activations", "optim.optimizer", "expected FIELD=VALUE, as optim.optimizer=muon"),
        ("activations", "optim.z_loss=-1", "z_loss=-1.0 must be at least 0"),
        ("activations", "optim.peak_learning_rate=1", "searched for each arm"),
        ("activations", "optim.warmup_steps=3", "its own schedule"),
        ("activations", "model.activation_options.order=2", "the arms of a study differ in it"),
        ("activations", "model.num_layers=3", "--model says it"),
        ("activations", "model.context_length=3", "--seq-len says it"),
        ("activations", "model.dtype=float16", "takes float32 or bfloat16"),
        ("optimizers", MUON, "arm swiglu_adamw has its own optim.optimizer, 'adamw'"),
        ("coefficients", "optim.multipliers.embedding=2", "arm rate_x0 has its own"),
        ("coefficients", "optim.decay_roles=matrix", "arm decayed has its own"),
        ("precision", "model.dtype=bfloat16", "arm swiglu_float32 has its own model.dtype"),
    ],
)
def test_what_is_not_the_recipe_s_is_refused_by_name(
    name: str, word: str, told: str, capsys: pytest.CaptureFixture[str]
):
    assert compare.main([name, "--recipe", word]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_fields_that_an_arm_has_of_its_own_are_the_recipe_s_in_other_studies():
    assert study_with("optim.z_loss=1e-4", name="optimizers").changes == {"optim.z_loss": 1e-4}
    words = ("--arms", "swiglu", "poly_norm", "--recipe", "optim.multipliers.embedding=2")
    found = config.from_command(["coefficients", *words])
    assert found.common.optim.multipliers.embedding == 2


def with_recipe(root: Path, **fields: object) -> Path:
    """The folder, as if made under this recipe."""
    path = root / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": fields or None}))
    return root


def test_a_report_names_the_recipe_and_takes_one_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = study(tmp_path / "a", "bytes-0.1m", 560, LOSSES, sd=0.001)
    assert read_cell(root).recipe == ""  # of an earlier version
    with_recipe(root, **{"optim.optimizer": "muon", "model.logit_softcap": 30.0})
    cell = read_cell(root)
    assert cell.base.logit_softcap == cell.arms["swiglu"].model.logit_softcap == 30
    assert compare.main(["leaderboard", str(root)]) == 0
    head = (root / "leaderboard.md").read_text().split("##")[0]
    assert "- recipe: model.logit_softcap=30.0 optim.optimizer=muon" in head
    assert about("-", cell) == {"command": "-", "recipe": cell.recipe}
    added = study_of(LeaderboardConfig(str(root), add=("relu2",)), root)
    assert added.common.optim.optimizer == "muon"

    study(tmp_path / "b", "bytes-0.3m", 560, LOSSES)
    capsys.readouterr()
    assert compare.main(["report", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "different recipes (a: model.logit_softcap=30.0 optim.optimizer=muon; b: as it" in told
    assert told.count("\n") == 1
    with_recipe(root)
    assert [found.recipe for found in read_cells(tmp_path)] == ["", ""]


def test_a_recipe_that_one_size_has_by_itself_is_the_same_recipe(tmp_path: Path):
    # dense-1b recomputes its blocks anyway, so that its folder names no change.
    small = study(tmp_path / "a", "dense-110m", 560, LOSSES)
    study(tmp_path / "b", "dense-1b", 560, LOSSES)
    with_recipe(small, **{"model.remat": "full"})
    assert [cell.recipe for cell in read_cells(tmp_path)] == ["model.remat=full", ""]
    with_recipe(small, **{"model.remat": "dots"})
    with pytest.raises(InputError, match=r"different recipes \(a: model.remat=dots; b: as it is"):
        read_cells(tmp_path)


@pytest.mark.parametrize("stored", [{"optim.optimizer": "moun"}, ["optim"], 3])
def test_a_recipe_that_no_study_has_written_is_told(tmp_path: Path, stored: object):
    root = study(tmp_path / "a", "bytes-0.1m", 560, {})
    path = root / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": stored}))
    with pytest.raises(InputError, match=r"settings\.json is not as a study has written it"):
        stored_config(root)


def test_a_grid_has_one_recipe():
    items = queue(replace(SCALINGS["quick"], recipe=(MUON,)))
    assert {item.config.common.optim.optimizer for item in items} == {"muon"}
    assert f"--recipe {MUON}" in items[0].command


def test_a_folder_goes_on_with_its_own_recipe_alone(settings: Path, tmp_path: Path):
    def begun(*words: str) -> Comparing:
        line = ["moe", "--model", "bytes-0.1m", "--data", str(settings.parent / "little.txt")]
        line += ["--data.document-bytes", "2000", "--seq-len", "16", "--out", str(tmp_path)]
        found = config.from_command([*line, *words])
        with Display(aside=True) as display:
            return Comparing(found, storage.named(str(tmp_path)), "-", display)

    first = begun("--recipe", MUON, "optim.z_loss=1e-4")
    assert first.about()["recipe"] == "optim.optimizer=muon optim.z_loss=0.0001"
    kept = json.loads((tmp_path / "settings.json").read_text())["recipe"]
    assert kept == {"optim.optimizer": "muon", "optim.z_loss": 1e-4}
    begun("--recipe", "optim.z_loss=0.0001", MUON)
    for words in ((), ("--recipe", MUON), ("--recipe", MUON, "optim.z_loss=1e-3")):
        with pytest.raises(InputError, match=r"other settings \(recipe: "):
            begun(*words)


def test_a_folder_goes_on_on_the_kind_of_device_that_it_began_on(settings: Path, tmp_path: Path):
    line = ["moe", "--model", "bytes-0.1m", "--data", str(settings.parent / "little.txt")]
    line += ["--data.document-bytes", "2000", "--seq-len", "16", "--out", str(tmp_path)]
    found, kept = config.from_command(line), tmp_path / "settings.json"

    def begun() -> None:
        with Display(aside=True) as display:
            Comparing(found, storage.named(str(tmp_path)), "-", display)

    begun()
    settings_there = json.loads(kept.read_text())
    kept.write_text(json.dumps(settings_there | {"device": "NVIDIA H100"}))
    with pytest.raises(InputError, match=r"\(device: 'NVIDIA H100' there, 'cpu' now\)"):
        begun()
    # Folders of earlier versions do not say it.
    del settings_there["device"]
    kept.write_text(json.dumps(settings_there))
    begun()
    assert "device" not in json.loads(kept.read_text())


def test_held_out_text_is_scored_by_the_averaged_weights_where_there_are_any():
    plain = SimpleNamespace(params=1, opt_state=())
    averaged = SimpleNamespace(params=1, opt_state=AveragedState((), 2, jnp.int32(3)))
    assert train.evaluated(plain) == 1  # pyright: ignore[reportArgumentType]
    assert train.evaluated(averaged) == 2  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_an_average_changes_the_scores_and_nothing_of_the_training(settings: Path, tmp_path: Path):
    line = ["activations", "--data", str(settings.parent / "little.txt")]
    data = config.from_command([*line, "--data.document-bytes", "2000"]).data
    corpus = prepare(data, vocab_size=257)
    some = next(train_batches(corpus.train, batch_size=8, seq_len=16, seed=0))
    cfg, batch = replace(SMALL, logit_softcap=5.0), jax.device_put(some)
    heldout = train.heldout_batches(corpus.heldout, batch_size=8, seq_len=16, tokens=256)

    def run(decay: float | None):
        optim = OptimConfig(optimizer="muon", ema_decay=decay)
        made = train.compile_programs(cfg, optim, batch)
        key = RunKey("swiglu", 0.01, 0, (8, 16))
        return train.train(made, key, corpus.train, heldout, batch_size=8)

    plain, averaged, newest = run(None), run(0.9), run(1e-6)
    assert plain.loss == averaged.loss == newest.loss
    assert plain.initial == averaged.initial
    assert newest.heldout == pytest.approx(plain.heldout, rel=1e-6)
    assert abs(averaged.final - plain.final) > 1e-4


@pytest.mark.slow
def test_a_study_under_another_recipe_ends_in_a_report_that_says_so(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setitem(config.SHAPES, "bytes-0.1m", SMALL)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(STUDIES, "moe", TWO)  # pyright: ignore[reportArgumentType]
    command = [
        "moe", "--model", "bytes-0.1m", "--search-seeds", "2", "--data",
        str(settings.parent / "little.txt"), "--data.document-bytes", "2000", "--seq-len", "16",
        "--steps", "8", "--seeds", "2", "--heldout-tokens", "64", "--out", str(tmp_path),
        "--recipe", MUON, "optim.ema_decay=0.9",
    ]  # fmt: skip
    assert compare.main(command) == 0
    report = (tmp_path / "report.md").read_text()
    assert f"- recipe: {MUON} optim.ema_decay=0.9" in report
    assert "--recipe optim.optimizer=muon" in report
    assert f"recipe: {MUON}" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())["sensitivities"]
    assert [len(one["values"]) for one in found] == [2, 2]
    assert (tmp_path / "plots" / "rates.png").stat().st_size > 1000
