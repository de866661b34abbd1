"""What may change when a run is resumed: what changes no result."""

import json
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_config

from experiments.compare import comparing
from experiments.pretrain import __main__ as pretrain
from experiments.run import resuming
from experiments.run.config import PretrainConfig, default_config, resolve
from experiments.run.folder import Workdir, resumed
from experiments.run.metrics import read_metrics
from experiments.run.resuming import BY_FINGERPRINT, FREE, ROUNDING, STAYS, allowed, differences
from experiments.run.settings import check_settings
from experiments.terminal import flags
from polycom_jax import InputError
from polycom_jax.data.tokenizers import train_bpe

NOTHING: frozenset[str] = frozenset()
CONFIG = resolve(default_config("tiny"), NOTHING, vocab_size=300)


def changed(config: PretrainConfig, **values: Any) -> PretrainConfig:
    """The config with fields, named with __ for a dot, set."""
    for name, value in values.items():
        *path, last = name.split("__")
        parts: list[Any] = [config]
        for part in path:
            parts.append(getattr(parts[-1], part))
        for part, own in zip([last, *reversed(path)], reversed(parts), strict=True):
            value = replace(own, **{part: value})
        config = value
    return config


def test_every_field_stands_in_one_table_with_a_reason():
    tables = (STAYS, BY_FINGERPRINT, ROUNDING, FREE)
    names = [name for table in tables for name in table]
    assert sorted(names) == sorted(flags.flatten(CONFIG))
    assert all(reason for table in tables for reason in table.values())


@pytest.mark.parametrize(
    "values",
    [
        *({"model__remat": "full"}, {"model__loss_chunk": 64}, {"model__unroll": 1}),
        *({"optim__accumulation_steps": 2}, {"mesh__fsdp": 2}, {"model__attention": "xla"}),
        *({"model__activation_options__implementation": "xla"}, {"run__deterministic": True}),
        {"run__compiler_options": ("xla_tpu_option=1",)},
    ],
)
def test_what_is_equal_up_to_rounding_may_change_and_is_told(values: dict[str, Any]):
    now = changed(CONFIG, **values)
    assert not differences(now, CONFIG)
    told = allowed(now, CONFIG)
    ((name, value),) = values.items()
    assert f"{name.replace('__', '.')} " in told
    assert told.endswith(f"-> {value!r} (equal from here on up to rounding)")


@pytest.mark.parametrize(
    "values",
    [
        *({"run__steps": 9}, {"run__keep_last": 5}, {"run__sample_prompt": "x"}),
        *({"data__cache_dir": "/c"}, {"run__compile_cache": False}, {"run__grace_s": 5.0}),
    ],
)
def test_what_changes_no_step_may_change_and_is_told(values: dict[str, Any]):
    now = changed(CONFIG, **values)
    assert not differences(now, CONFIG)
    (value,) = values.values()
    assert allowed(now, CONFIG).endswith(f"-> {value!r}")


def test_nothing_is_told_where_nothing_changed_or_the_folder_was_named():
    assert not allowed(CONFIG, CONFIG)
    now = changed(CONFIG, workdir="elsewhere", hosts__lost_after_s=30.0)
    assert not differences(now, CONFIG)
    assert not allowed(now, CONFIG)


@pytest.mark.parametrize(
    "values",
    [
        *({"model__activation_options__eps": 1e-3}, {"model__dtype": "bfloat16"}, {"run__seed": 1}),
        *({"model__moe__capacity_factor": 2.0}, {"model__context_length": 8}, {"optim__b1": 0.5}),
        *({"data__undecodable": "skip"}, {"data__batch_size": 4}, {"run__eval_tokens": 9}),
    ],
)
def test_what_makes_another_run_is_refused_with_both_values(values: dict[str, Any]):
    ((name, value),) = values.items()
    now = changed(CONFIG, **values)
    ((found, (_, new)),) = differences(now, CONFIG).items()
    assert (found, new) == (name.replace("__", "."), value)
    assert not allowed(now, CONFIG)


@pytest.mark.filterwarnings("ignore:optim.coefficient_multiplier:DeprecationWarning")
def test_a_run_of_0_1_0_goes_on_with_its_multiplier_of_coefficients():
    now = changed(CONFIG, optim__coefficient_multiplier=0.5)
    # Its checkpoints hold 0.5 under the former name, and are refused where another stands there.
    assert resuming.fixed(now).get("optim.coefficient_multiplier", 0.5) == 0.5
    assert differences(now, CONFIG) == {"optim.multipliers.coefficient": (1.0, 0.5)}


def test_a_mixture_s_routers_balance_each_part_so_its_accumulation_stays():
    mixture = default_config("moe-tiny")
    now = changed(mixture, optim__accumulation_steps=2)
    assert differences(now, mixture) == {"optim.accumulation_steps": (1, 2)}
    assert not differences(changed(mixture, model__remat="full"), mixture)


def test_devices_that_drop_tokens_are_arranged_as_they_were():
    mixture = default_config("moe-tiny")
    assert not differences(changed(mixture, mesh__expert=4), mixture)
    dropping = changed(mixture, model__moe__capacity_factor=1.0)
    found = differences(changed(dropping, mesh__expert=4), dropping)
    assert found == {"mesh.expert": (1, 4)}


@pytest.mark.parametrize(
    ("field", "old", "new", "may"),
    [
        ("source", "/gone/d.jsonl", "FILE", True),
        ("source", "/gone/*.txt", "/new/*.txt", True),
        ("source", "stdlib", "FILE", False),
        ("source", "FILE", "stdlib", False),
        ("source", "c4/en", "lm1b", False),
        ("source", "/gone/d.jsonl", "c4/en", False),
        ("tokenizer", "gone/tokenizer.json", "FILE", True),
        ("tokenizer", "bpe", "bytes", False),
        ("tokenizer", "bpe", "FILE", False),
        ("heldout", "/gone/h.txt", "/new/h.txt", True),
        ("heldout", None, "/new/h.txt", False),
    ],
)
def test_of_data_elsewhere_the_fingerprint_decides(
    tmp_path: Path, field: str, old: str | None, new: str, may: bool
):
    file = tmp_path / "file.json"
    file.touch()
    place = str(file)
    data = replace(CONFIG.data, source="a.txt")
    before, now = (
        replace(CONFIG, data=replace(data, **{field: value and value.replace("FILE", place)}))
        for value in (old, new)
    )
    assert bool(differences(now, before)) is not may
    assert ("if the bytes are the same" in allowed(now, before)) is may


def test_a_tokenizer_that_lay_in_a_folder_that_was_moved_is_found(tmp_path: Path):
    (tmp_path / "a").mkdir()
    here, config = Workdir(tmp_path / "b"), CONFIG
    texts = ["a text of some words, and of some more words"] * 3
    train_bpe(iter(texts), 270, tmp_path / "a" / "t.json")
    config = replace(config, data=replace(config.data, tokenizer=str(tmp_path / "a" / "t.json")))
    here.root.mkdir()
    shutil.copy(config.data.tokenizer, here.tokenizer)
    here.write_config(config, {})
    assert here.read_config().data.tokenizer == config.data.tokenizer
    shutil.rmtree(tmp_path / "a")
    assert here.read_config().data.tokenizer == str(here.tokenizer)
    for more in ("", f" --data.tokenizer {here.tokenizer}"):
        words = shlex.split(f"--config {here.config} --workdir {here.root}{more}")
        command = run_config(words)
        assert resumed(here, *command).data.tokenizer == str(here.tokenizer)


@pytest.fixture
def stored(tmp_path: Path) -> Workdir:
    """The folder of a run of twenty steps with settings of its own, that nothing was saved of."""
    workdir = Workdir(tmp_path / "run")
    workdir.root.mkdir()
    words = "--activation swiglu --steps 20 --seed 5 --data a.txt"
    config, given = run_config(shlex.split(words))
    record = {"filled_in": ["model.vocab_size", "optim.warmup_steps", "optim.decay_steps"]}
    workdir.write_config(resolve(config, given, vocab_size=334), record)
    return workdir


def test_the_folder_alone_is_enough_to_go_on(stored: Workdir):
    for more in ("", "--steps 40", "--mesh.fsdp 2 --model.remat full --data.cache-dir x"):
        for first in (["--workdir", str(stored.root)], [str(stored.root)]):
            config, given = pretrain.read_command([*first, *more.split()])
            assert config.workdir == str(stored.root)
            assert (config.model.activation, config.run.seed) == ("swiglu", 5)
            assert config.data.source == "a.txt"
            found = resumed(stored, config, given)
            assert found.model.vocab_size == 334
            assert (found.optim.warmup_steps, found.optim.decay_steps) == (2, 20)
    assert found.mesh.fsdp == 2


def test_a_named_run_goes_on_with_its_own_settings_whatever_flags_say(stored: Workdir):
    command = pretrain.read_command([str(stored.root), "--seed", "6"])
    assert command[0].model.activation == "swiglu"
    with pytest.raises(InputError, match=r"run\.seed: 5 there, 6 now"):
        resumed(stored, *command)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere", r"no run in nowhere .*pretrain --workdir nowhere` makes one"),
        ("RUN --workdir w", "goes on with its own settings: leave out --config and --workdir"),
        ("RUN --config c.yaml", "takes one file|leave out --config|c.yaml cannot be read"),
        ("RUN other", "^RUN takes one value, not the 2 words"),
    ],
)
def test_a_word_that_is_no_run_is_refused(stored: Workdir, words: str, message: str):
    with pytest.raises(InputError, match=message):
        pretrain.read_command(words.replace("RUN", str(stored.root)).split())


@pytest.mark.parametrize("more", ["--seed 5", "--model tiny", "--data b.txt", "--config OTHER"])
def test_a_command_that_says_what_the_run_is_stands_for_itself(
    stored: Workdir, tmp_path: Path, more: str
):
    other = tmp_path / "other.yaml"
    other.write_text("run: {steps: 7}\n")
    words = more.replace("OTHER", str(other)).split()
    config, _ = pretrain.read_command(["--workdir", str(stored.root), *words])
    assert config.model.activation == "poly_norm"


def test_a_new_run_with_the_file_of_another_fills_in_its_own(stored: Workdir):
    words = f"--config {stored.config} --workdir other --data b.txt --steps 4000"
    config, given = run_config(shlex.split(words))
    assert config.model.vocab_size == default_config("tiny").model.vocab_size
    assert "model.vocab_size" not in given
    found = resolve(config, given, vocab_size=2000)
    assert found.model.vocab_size == 2000
    assert (found.optim.warmup_steps, found.optim.decay_steps) == (40, 4000)


def test_what_was_given_to_a_run_goes_on_to_others(tmp_path: Path):
    workdir = Workdir(tmp_path)
    words = "--model.vocab-size 500 --optim.warmup-steps 3 --optim.decay-steps 70"
    config, given = run_config(shlex.split(words))
    workdir.write_config(resolve(config, given, vocab_size=334), {"filled_in": []})
    again, given = run_config(["--config", str(workdir.config)])
    assert again.model.vocab_size == 500
    assert (again.optim.warmup_steps, again.optim.decay_steps) == (3, 70)
    assert {"model.vocab_size", "optim.warmup_steps", "optim.decay_steps"} <= given


def test_files_of_earlier_versions_tell_by_what_was_asked(tmp_path: Path):
    workdir = Workdir(tmp_path)
    config = resolve(default_config("tiny"), NOTHING, vocab_size=334)
    config = replace(config, optim=replace(config.optim, decay_steps=None))
    workdir.write_config(config, {"vocab_size_asked": 2048, "decay_steps": 400})
    stored = workdir.read_config()
    assert (stored.model.vocab_size, stored.optim.decay_steps) == (334, 400)
    again, given = run_config(["--config", str(workdir.config)])
    assert again.model.vocab_size == 2048
    assert not {"model.vocab_size", "optim.decay_steps"} & given
    assert not differences(resumed(workdir, again, given), stored)


@pytest.mark.parametrize(
    ("words", "warmup"),
    [
        *(("", 40), ("--steps 400", 40), ("--steps 4000", 40), ("--steps 20", 2)),
        *(("--steps 200", 20), ("--steps 1", 0), ("--steps 1_000", 40)),
        *(("--steps 20 --optim.warmup-steps 7", 7), ("--model dense-110m --steps 1000", 100)),
        *(("--model moe-1b-7b", 2500), ("--steps 20 --optim.decay-steps 20", 2)),
    ],
)
def test_a_warm_up_that_nobody_gave_is_a_tenth_of_the_run_at_most(words: str, warmup: int):
    config, _ = run_config(shlex.split(words))
    assert config.optim.warmup_steps == warmup


def test_where_the_schedule_does_not_suit_the_run_it_is_said():
    config = changed(CONFIG, run__steps=20)
    (warning,) = pretrain.schedule_warnings(config, resuming=False)
    assert "warmup_steps=40 is not shorter than the run's 20 steps" in warning
    longer = changed(CONFIG, run__steps=800)
    assert pretrain.schedule_warnings(longer, resuming=False) == []
    (warning,) = pretrain.schedule_warnings(longer, resuming=True)
    assert "ends at step 400" in warning
    assert "to step 800 the learning rate stays at 0.0005" in warning
    assert pretrain.schedule_warnings(CONFIG, resuming=True) == []


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_with_less_memory_to_the_same_numbers(
    whole: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plain, moved = tmp_path / "plain", tmp_path / "moved"
    for folder in (plain, moved):
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(".lock"))
    assert pretrain.main(["--workdir", str(plain), "--steps", "7"]) == 0
    out = capsys.readouterr().out
    assert "changed: run.steps 6 -> 7\n" in out
    assert "ends at step 6: from there to step 7 the learning rate stays at" in out
    text = str(tmp_path / "elsewhere.txt")
    shutil.copy(settings.parent / "little.txt", text)
    words = ["--workdir", str(moved), "--steps", "7", "--data", text, "--model.remat", "full"]
    words += ["--mesh.data", "4", "--mesh.fsdp", "2", "--model.loss-chunk", "16"]
    assert pretrain.main(words) == 0
    assert "model.remat 'none' -> 'full' (equal from here on" in capsys.readouterr().out
    one, other = (read_metrics(folder / "metrics.jsonl")[-1] for folder in (plain, moved))
    assert one["step"] == other["step"] == 7
    rounding = 64 * float(np.finfo(np.float32).eps)
    for name in ("loss", "grad_norm", "heldout_loss"):
        np.testing.assert_allclose(one[name], other[name], rtol=rounding)
    stored = Workdir(moved)
    assert stored.read_config().data.source == text
    assert stored.record()["data"]["source"] == text
    assert json.dumps(stored.record()["data_fingerprint"]) in json.dumps(Workdir(whole).record())

    Path(text).write_text(Path(text).read_text().replace("quick", "slow"))
    assert pretrain.main([*words, "--steps", "8"]) == 2
    error = capsys.readouterr().err
    assert "was trained on other data" in error
    assert error.count("\n") == 1


def test_other_words_than_a_place_are_refused_before_anything_is_prepared(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    folder = tmp_path / "w"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(".lock"))
    monkeypatch.setattr("experiments.run.corpus.prepare_mixture", None)
    assert pretrain.main(["--workdir", str(folder), "--steps", "9", "--data", "c4/en"]) == 2
    assert "data.source" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"model\.activation: 'poly_norm' there, 'swiglu' now"):
        resumed(Workdir(folder), *run_config(["--activation", "swiglu"]))
    assert resuming.goes_on(frozenset({"workdir", "run.steps"}))


def test_a_comparison_s_data_may_lie_elsewhere_too(tmp_path: Path):
    file = tmp_path / "settings.json"
    check = partial(check_settings, free=comparing.FREE, holds="runs", advice="Take another --out.")
    check(file, {"steps": 8, "data_fingerprint": "f", "data.source": "/old"})
    # Earlier versions wrote the place, too; the bytes decide.
    check(file, {"steps": 8, "data_fingerprint": "f"})
    with pytest.raises(InputError, match="data_fingerprint: 'f' there, 'g' now"):
        check(file, {"steps": 8, "data_fingerprint": "g"})
    assert {"data.source", "data.tokenizer", "data.heldout", "data.cache_dir"} <= comparing.FREE
