"""Runs that begin from weights of others (`run.init_from`), and runs that are only looked at."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments.convert import __main__ as convert
from experiments.pretrain import __main__ as pretrain
from experiments.run.command import from_command
from experiments.run.config import as_stored, default_config, resolve
from experiments.run.folder import Workdir
from experiments.run.metrics import read_metrics
from experiments.run.model_loading import Model, load_trained
from experiments.run.resuming import allowed, differences
from experiments.run.starting import adopted, own_tokenizer, with_rate
from polycom_jax import InputError, models
from polycom_jax.data import ByteTokenizer, DataConfig

Run = Callable[..., int]


def test_what_is_evaluated_may_change_until_something_is():
    stored = resolve(default_config("tiny"), frozenset(), vocab_size=300)
    now = replace(stored, run=replace(stored.run, eval_tokens=9))
    assert not differences(now, stored, begun=False)
    told = "run.eval_tokens None -> 9 (nothing is evaluated yet)"
    assert allowed(now, stored, begun=False) == told
    other = replace(now, run=replace(now.run, seed=1))
    assert differences(other, stored, begun=False) == {"run.seed": (0, 1)}


@pytest.mark.parametrize(
    ("model", "rate", "nearest"),
    [
        (
            models.preset("dense-1b", embed_dim=1536, num_heads=12, num_kv_heads=12),
            3e-4,
            "dense-1b",
        ),
        (models.preset("tiny", num_layers=1), 5e-3, "tiny"),
        (models.preset("moe-1b-7b", num_layers=8), 4e-4, "moe-1b-7b"),
    ],
)
def test_weights_of_any_size_have_a_rate_of_their_size(model, rate, nearest):
    told: list[str] = []
    display: Any = SimpleNamespace(note=told.append)
    config = replace(default_config("tiny"), model=model)
    found = with_rate(config, frozenset({"data.source"}), display)
    assert found.optim == replace(config.optim, peak_learning_rate=rate)
    assert f"peak_learning_rate={rate}, of {nearest}" in told.pop()
    for name in ("optim.peak_learning_rate", "preset"):
        assert with_rate(config, frozenset({name}), display) == config
        assert not told
    # The same command resumes it, though its own default is another rate.
    stored = resolve(found, frozenset(), vocab_size=300)
    assert as_stored(default_config("tiny"), frozenset(), stored).optim.peak_learning_rate == rate


CFG = models.preset("tiny", vocab_size=257)
SOURCE = Model(CFG, {}, ByteTokenizer(), DataConfig(), Path("m"), 9)


def test_what_is_not_a_model_s_shape_may_be_another_than_its_source_s():
    asked = {"context_length": 64, "dtype": "bfloat16", "remat": "full", "loss_chunk": 32}
    default = default_config("tiny")
    config = replace(default, model=replace(CFG, init="olmo", **asked))
    given = frozenset({*(f"model.{name}" for name in asked), "model.embed_dim", "run.seed"})
    found = adopted(config, given, SOURCE)
    assert found.model == replace(CFG, **asked)  # and the start that nobody asked for is not
    assert found.data == replace(config.data, tokenizer="bytes")
    with pytest.raises(InputError, match=r"embed_dim=192, and model\.embed_dim=96 was asked for"):
        adopted(replace(config, model=replace(config.model, embed_dim=96)), given, SOURCE)


def test_a_model_without_a_tokenizer_takes_the_one_that_is_named_if_it_is_no_new_one():
    bare, config = replace(SOURCE, tokenizer=None), default_config("tiny")
    named = frozenset({"data.tokenizer"})
    for tokenizer, given in (("bpe", named), ("t.json", frozenset[str]())):
        data = replace(config.data, tokenizer=tokenizer)
        with pytest.raises(InputError, match=r"m holds no tokenizer\.json; name one"):
            own_tokenizer(replace(config, data=data), given, bare)
    assert own_tokenizer(replace(config, data=data), named, bare) == "t.json"


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["--activation", "poly_norm", "--model.activation-options.order", "2"], 2),
        (["--activation", "poly_norm", "--model.activation-options.order", "3"], None),
        (["--activation", "poly_norm"], None),
    ],
)
def test_the_same_activation_of_another_order_is_another_one(words, order):
    command, given = from_command(convert.LINE, convert.ConvertCommand(), ["RUN", *words])
    _, activation = convert.plan(command.pretrain, given, SOURCE)
    assert (activation and activation.options.order) == order


def test_a_file_is_the_same_activation_wherever_it_lies(tmp_path: Path):
    text = "import polycom_jax as pc\nact = pc.activation(lambda x: x * abs(x), name='signed')\n"
    places = [tmp_path / folder / "mine.py" for folder in "ab"]
    for place in (*places, tmp_path / "other.py"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    (tmp_path / "other.py").write_text(text + "# another\n")
    source = replace(SOURCE, cfg=replace(CFG, activation=f"{places[0]}:act"))
    words = ["RUN", "--activation", f"{places[1]}:act"]
    command, given = from_command(convert.LINE, convert.ConvertCommand(), words)
    planned, activation = convert.plan(command.pretrain, given, source)
    assert activation is None
    found = adopted(command.pretrain, given, source)
    for model in (planned.model, found.model):
        assert str(model.activation).startswith(f"{places[1]}:act#sha256=")
    config = replace(
        command.pretrain,
        model=replace(command.pretrain.model, activation=f"{tmp_path / 'other.py'}:act"),
    )
    with pytest.raises(InputError, match="its model has activation="):
        adopted(config, given, source)


def params_of(root: Path, checkpoint: str = "latest"):
    return jax.tree.leaves(load_trained(Workdir(root), checkpoint).params)


@pytest.mark.slow
def test_a_new_run_begins_with_the_weights_of_another(run: Run, whole: Path, tmp_path: Path):
    tuned = tmp_path / "tuned"
    words = ("--run.init-from", str(whole), "--optim.peak-learning-rate", "1e-30", "--steps", "2")
    assert run(tuned, *words, "--optim.weight-decay", "0") == 0
    for ours, theirs in zip(params_of(tuned), params_of(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-25)
    first = read_metrics(tuned / "metrics.jsonl")[0]
    assert first["loss"] < read_metrics(whole / "metrics.jsonl")[0]["loss"]


@pytest.mark.slow  # four runs
def test_it_goes_on_without_the_source_by_any_command(run: Run, whole: Path, tmp_path: Path):
    source, tuned = tmp_path / "source", tmp_path / "tuned"
    assert run(source, "--steps", "2") == 0
    words = ("--run.init-from", str(source))
    assert run(tuned, *words, "--steps", "2") == 0
    source.rename(tmp_path / "gone")
    assert run(tuned, *words, "--steps", "4") == 0
    assert pretrain.main([str(tuned), "--steps", "6"]) == 0
    assert [r["step"] for r in read_metrics(tuned / "metrics.jsonl")][-1] == 6


@pytest.mark.slow
def test_a_hugging_face_folder_is_begun_from_with_its_own_shape(
    whole: Path, settings: Path, tmp_path: Path
):
    exported, tuned = tmp_path / "exported", tmp_path / "tuned"
    assert convert.main([str(whole), "--out", str(exported)]) == 0
    text = str(settings.parent / "little.txt")
    words = ["--data", text, "--batch-size", "8", "--data.document-bytes", "2000"]
    words += ["--steps", "1", "--run.init-from", str(exported)]
    words += ["--optim.peak-learning-rate", "1e-30", "--optim.weight-decay", "0"]
    assert pretrain.main(["--workdir", str(tuned), *words]) == 0
    assert Workdir(tuned).read_config().model.embed_dim == 32
    for ours, theirs in zip(params_of(tuned), params_of(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--activation", "gelu"], "activation='poly_norm'"),
        (["--model.embed-dim", "16"], "embed_dim=32"),
        (["--data.tokenizer", "bpe"], "has its own"),
        (["--run.init-from", "nowhere"], "'nowhere' holds neither a run"),
        (["--run.init-from", "tiny"], "that is a preset, which has no weights: leave it out"),
        (["--run.init-from", "org/name"], "`hf download org/name --local-dir FOLDER`"),
        (["--run.init-from", "WHOLE/checkpoints/6"], "give the folder of its run, WHOLE,"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    run: Run,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    workdir = tmp_path / "run"
    assert (
        pretrain.main(
            ["--workdir", str(workdir), "--run.init-from", str(whole), "--data", "stdlib"]
            + [word.replace("WHOLE", str(whole)) for word in words]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert message.replace("WHOLE", str(whole)) in said
    assert said.count("\n") == 1
    assert not (workdir / "config.yaml").exists()


def test_a_dry_run_tells_what_would_run_and_writes_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    assert run(workdir, "--run.dry-run") == 0
    assert not workdir.exists()
    said = capsys.readouterr().out
    for word in ("embed_dim: 32", "temporaries", "a checkpoint:", "parameters,", "training tokens"):
        assert word in said


def test_a_dry_run_says_that_memory_is_short(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("experiments.pretrain.dry_run.memory_of_a_device", lambda: 1000)
    assert run(tmp_path / "run", "--run.dry-run") == 2
    assert "GiB a device, and there are 0.00; take fewer tokens" in capsys.readouterr().err


def test_a_dry_run_of_a_run_that_is_there_leaves_it_alone(run: Run, whole: Path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert run(whole, "--run.dry-run", "--steps", "12") == 0
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.slow
def test_steps_are_traced_where_asked(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = tmp_path / "run"
    assert run(workdir, "--run.profile-steps", "2:3", "--steps", "4") == 0
    traces = {path.suffixes[-1] for path in (workdir / "profile").rglob("*") if path.is_file()}
    assert ".pb" in traces
    assert "xprof --logdir" in capsys.readouterr().out


@pytest.mark.parametrize("steps", ["5", "5:2", "0:3", "a:b", "900:910"])
def test_steps_to_trace_that_are_none_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: str
):
    assert run(tmp_path / "run", "--run.profile-steps", steps) == 2
    assert f"run.profile_steps='{steps}'" in capsys.readouterr().err
