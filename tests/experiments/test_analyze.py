"""Two runs side by side, from end to end."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.analyze import __main__ as analyze
from experiments.analyze import report
from experiments.analyze.measure import by_block, measure, weights_of
from experiments.convert import __main__ as convert
from experiments.pretrain import __main__ as pretrain
from experiments.run.model_loading import Model
from polycom_jax import models
from polycom_jax import params as pm
from polycom_jax.data import DataConfig
from polycom_jax.sharding import make_mesh
from polycom_jax.training import OptimConfig, make_state


@pytest.mark.slow
def test_runs_are_measured_side_by_side(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs = [str(tmp_path / name) for name in ("first", "again")]
    assert pretrain.main(["--config", str(settings), "--workdir", runs[0], "--steps", "1"]) == 0
    shutil.copytree(runs[0], runs[1])
    out = tmp_path / "analysis"
    assert analyze.main([*runs, "--tokens", "64", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Ranks of weight matrices" in printed
    report = (out / "report.md").read_text()
    assert "| matrix | rank | first | again |" in report
    found = json.loads((out / "results.json").read_text())["runs"]
    assert found["first"] == found["again"]
    untrained = found["first"]["untrained"]
    assert untrained.keys() == {"weights", "inside", "gradients"}
    assert untrained["weights"] != found["first"]["weights"]
    assert "Mind" not in printed
    inside = found["first"]["inside"]
    assert np.shape(inside["cka"]) == np.shape(inside["cosine"]) == (3, 3)
    np.testing.assert_allclose(np.diag(inside["cka"]), 1)
    assert len(inside["hidden"]) == 2
    for figure in ("ranks", "spectra", "cosine", "cka", "activity", "gradients", "curves"):
        assert (out / "plots" / f"{figure}.png").stat().st_size > 1000


def test_misuse_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert analyze.main(["--tokens", "0"]) == 2
    assert "tokens=0" in capsys.readouterr().err
    assert analyze.main([str(tmp_path / "nothing")]) == 2
    assert "holds neither a run" in capsys.readouterr().err
    assert analyze.main(["--tokenizer", "bytes"]) == 2
    assert "goes with data" in capsys.readouterr().err
    for words in (["--split", "all"], ["--split", "all", "--data", "stdlib"]):
        assert analyze.main(words) == 2
        assert "split='all' goes with --data and files" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_model_is_measured_as_the_run_that_it_was(
    whole: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, text, out = (tmp_path / name for name in ("folder", "text.txt", "analysis"))
    assert convert.main([str(whole), "--out", str(folder)]) == 0
    assert analyze.main([str(folder)]) == 2
    assert "name one: --data" in capsys.readouterr().err
    # Not the run's own text, of which it would be measured on what its training left out; and no
    # random model, whose seed a folder does not know.
    text.write_text(settings.with_name("little.txt").read_text() + "And a line of its own.\n")
    words = ["--data", str(text), "--tokens", "64", "--out", str(out), "--untrained", "False"]
    assert analyze.main([str(whole), str(folder), *words]) == 0
    run, imported = json.loads((out / "results.json").read_text())["runs"].values()
    assert (run["model"].pop("step"), imported["model"].pop("step")) == (6, None)
    assert imported == run
    text.write_text("One document alone, of which nothing can be held out.\n" * 3)
    assert analyze.main([str(folder), *words]) == 2
    assert "--split all reads all" in " ".join(capsys.readouterr().err.split())
    assert analyze.main([str(folder), *words, "--split", "all"]) == 0
    (folder / "tokenizer.json").unlink()
    assert analyze.main([str(folder), *words]) == 2
    assert "name one with --tokenizer" in capsys.readouterr().err


def test_runs_of_equal_names_are_told_apart(tmp_path: Path):
    assert list(analyze.names(["a/x", "b/y"])) == ["x", "y"]
    assert list(analyze.names(["a/x", "b/x", "b/x"])) == ["a/x", "b/x"]


def test_everything_that_is_measured_of_a_mixture_is_there():
    cfg = models.preset(
        "moe-tiny", activation="swiglu", num_layers=1, embed_dim=8, vocab_size=40, gated_width=8
    )
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).standard_normal(leaf.shape),
        pm.abstract(models.specs(cfg)),
    )
    weights = weights_of(cfg, params)
    assert {"moe/w_gate", "moe/router", "attention/w_o", "embed"} <= set(weights)
    for matrix in weights.values():
        assert np.shape(matrix["ranks"]["effective"]) == (1,)
        assert np.shape(matrix["singular_values"]) == (1, min(matrix["shape"]))


def test_norms_of_blocks_are_those_of_their_parameters_together():
    found = by_block({"layers/ffn/w": [3.0, 0.0], "layers/ffn/v": [4.0, 2.0], "embed": [9.0]})
    assert found == {"ffn": [5.0, 2.0]}


def with_model(**models: tuple[int | None, str]) -> dict[str, dict]:
    return {run: {"model": {"step": step, "text": text}} for run, (step, text) in models.items()}


def test_what_is_not_compared_and_differs_is_said_in_one_line():
    assert report.unlike(with_model(a=(20, "stdlib"), b=(20, "stdlib")), 20) == []
    assert report.unlike(with_model(a=(20, "stdlib"), b=(None, "stdlib")), 20) == []
    (line,) = report.unlike(with_model(a=(40, "stdlib"), b=(20, "stdlib")), 20)
    assert line == "Mind: not at the same step (a: 40, b: 20); --checkpoint 20 reads that of all."
    (line,) = report.unlike(with_model(a=(40, "x"), b=(20, "x")), None)
    assert line.endswith("no step is saved of all.")
    (line,) = report.unlike(with_model(a=(20, "x.txt"), b=(20, "y.txt")), 20)
    assert line == "Mind: not on the same text (a: x.txt, b: y.txt); --data names one for all."


@pytest.mark.slow
def test_a_step_that_all_runs_have_is_proposed_and_read(
    settings: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other, out = tmp_path / "other", tmp_path / "analysis"
    assert pretrain.main(["--config", str(settings), "--workdir", str(other), "--steps", "4"]) == 0
    words = [str(whole), str(other), "--tokens", "32", "--out", str(out), "--untrained", "False"]
    assert analyze.main(words) == 0
    mind = f"Mind: not at the same step ({whole.name}: 6, other: 4); --checkpoint 4 reads"
    assert mind in capsys.readouterr().out
    assert mind in (out / "report.md").read_text()
    assert analyze.main([*words, "--checkpoint", "4"]) == 0
    assert "Mind" not in capsys.readouterr().out
    assert "untrained" not in json.loads((out / "results.json").read_text())["runs"]["other"]


@pytest.mark.parametrize("preset", ["tiny", pytest.param("moe-tiny", marks=pytest.mark.slow)])
def test_the_random_model_is_what_the_run_began_with(preset: str, monkeypatch: pytest.MonkeyPatch):
    """Its weights are those of step 0: the run's own config, seed and initialisation."""
    # Programs of its own to compile, and nothing of it is looked at here.
    monkeypatch.setattr("experiments.analyze.measure.sparsity_of", lambda *parts: {})
    cfg = models.preset(
        preset, num_layers=1, embed_dim=8, vocab_size=40, gated_width=8, num_heads=1,
        num_kv_heads=1, head_dim=8, context_length=8,
    )  # fmt: skip
    state = make_state(cfg, OptimConfig(), jax.random.key(3), make_mesh(devices=jax.devices()[:1]))
    batch = {
        "tokens": np.ones((1, 8), np.int32), "targets": np.ones((1, 8), np.int32),
        "mask": np.ones((1, 8), bool), "segment_ids": np.zeros((1, 8), np.int32),
        "positions": np.arange(8, dtype=np.int32)[None],
    }  # fmt: skip
    trained = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
    model = Model(cfg, trained, None, DataConfig(), Path("run"), 5)
    found = measure(model, batch, lambda what: None, seed=3)
    assert found["untrained"]["weights"] == weights_of(cfg, state.params)
    assert found["weights"] != found["untrained"]["weights"]
    assert "untrained" not in measure(model, batch, lambda what: None)
