"""Where a run's settings come from, and which of them a resumed run may change."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from commands import run_config

from experiments.run.command import from_file
from experiments.run.config import (
    PretrainConfig,
    RunConfig,
    default_config,
    inherit,
    resolve,
)
from experiments.run.folder import Workdir, resumed
from experiments.run.resuming import differences
from experiments.run.yaml_file import RECORD
from polycom_jax import InputError
from polycom_jax.models import preset
from polycom_jax.training import RECIPES, recipe

NOTHING: frozenset[str] = frozenset()
TINY = recipe("tiny")


def read(command: str = "") -> tuple[PretrainConfig, frozenset[str]]:
    return run_config(shlex.split(command))


def test_without_flags_it_is_the_recipe_of_tiny():
    config, given = read()
    assert (config.model, config.optim) == (TINY.model, TINY.optim)
    assert (config.data.batch_size, config.run.steps) == (TINY.batch_size, TINY.steps)
    assert config.workdir == "runs/tiny-poly_norm"
    assert given == NOTHING


def test_short_names_reach_their_fields():
    config, given = read(
        "--workdir w --model dense-110m --activation swiglu --data a.txt --steps 7"
        " --batch-size 8 --seq-len 64 --seed 3 --log-every 1"
        " --eval-every 2 --checkpoint-every 3 --optim.peak-learning-rate 1e-2"
    )
    assert config.model == preset("dense-110m", activation="swiglu", context_length=64)
    assert (config.data.source, config.data.batch_size) == ("a.txt", 8)
    assert config.run == RunConfig(steps=7, seed=3, log_every=1, eval_every=2, checkpoint_every=3)
    assert config.optim.peak_learning_rate == 0.01
    assert config.workdir == "w"
    assert "optim.peak_learning_rate" in given
    assert "model.activation" in given


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {preset: dense-110m, num_layers: 3}\nrun: {steps: 5, seed: 9}\n")
    config, given = read(f"--config {path} --steps 6")
    assert config.model == preset("dense-110m", num_layers=3)
    assert (config.run.steps, config.run.seed) == (6, 9)
    assert config.optim == replace(recipe("dense-110m").optim, warmup_steps=0)  # of six steps
    assert given == {"preset", "model.num_layers", "run.steps", "run.seed"}


def test_a_flag_and_a_file_may_not_name_different_presets(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {preset: dense-110m, num_layers: 3}\n")
    with pytest.raises(InputError, match=r"--model tiny .* is made from 'dense-110m': drop the"):
        read(f"--config {path} --model tiny")
    assert read(f"--config {path} --model dense-110m")[0].model.num_layers == 3
    path.write_text("model: {num_layers: 3}\n")
    assert read(f"--config {path} --model tiny")[0].model == preset("tiny", num_layers=3)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--model dense-2b", "Unknown .*'dense-2b'. Did you mean 'dense-1b'"),
        ("--activation polynorm", "'polynorm'. Did you mean 'poly_norm'"),
        ("--optim.peak-lerning-rate 1", "Did you mean '--optim.peak-learning-rate'"),
        ("--peak-learning-rate 1", "Did you mean '--optim.peak-learning-rate'"),
        ("--bath-size 1", "Did you mean '--batch-size'"),
        ("--steps 0", "run.steps=0 must be at least 1"),
        ("--seed -1", "run.seed=-1"),
        ("--steps 1.5", "--run.steps.*'1.5'"),
        ("--config a --config b", "--config takes one file, not 2"),
        ("--config a b", "--config takes one file, not 2"),
        ("--config --steps 3", "--config takes one file, not 0"),
        ("--config a.yaml --config", "--config takes one file, not 1"),
        ("--config none.yaml", r"none\.yaml cannot be read"),
    ],
)
def test_a_bad_command_is_an_error_that_helps(command: str, message: str):
    with pytest.raises(InputError, match=message):
        read(command)


def test_the_written_config_reads_back_as_it_was(tmp_path: Path):
    words = "--activation swiglu --optim.clip-norm None --optim.decay-roles matrix"
    config, _ = read(f"""{words} --run.sample-prompt "a: 'b'\n# c" --model dense-110m""")
    config = resolve(config, NOTHING, vocab_size=300)
    workdir = Workdir(tmp_path)
    workdir.write_config(config, {"data_fingerprint": "f", "data": {"bytes": 3}})
    assert replace(from_file(workdir.config), workdir=config.workdir) == config
    assert workdir.record() == {"data_fingerprint": "f", "data": {"bytes": 3}}
    assert set(yaml.safe_load(workdir.config.read_text())) == {
        *("model", "optim", "data", "mesh", "run", RECORD)
    }
    assert not list(tmp_path.glob("*.tmp"))


def test_the_vocabulary_is_the_tokenizers_unless_one_is_given():
    config = default_config("tiny")
    assert resolve(config, NOTHING, vocab_size=300).model.vocab_size == 300
    given = frozenset({"model.vocab_size"})
    assert resolve(config, given, vocab_size=300).model.vocab_size == config.model.vocab_size
    with pytest.raises(InputError, match=r"vocab_size=2048 is smaller than the tokenizer's 5000"):
        resolve(config, given, vocab_size=5000)


def test_the_schedule_ends_with_the_run_unless_told_otherwise():
    config = default_config("tiny")
    assert resolve(config, NOTHING, vocab_size=9).optim.decay_steps == config.run.steps
    short = replace(config, run=RunConfig(steps=3))
    warmup = TINY.optim.warmup_steps
    assert resolve(short, NOTHING, vocab_size=9).optim.decay_steps == warmup + 1
    told = replace(config, optim=replace(config.optim, decay_steps=77))
    assert resolve(told, NOTHING, vocab_size=9).optim.decay_steps == 77


@pytest.fixture
def stored(tmp_path: Path) -> Workdir:
    """The folder of a run of `tiny` whose tokenizer had 300 ids."""
    workdir = Workdir(tmp_path)
    config = resolve(read()[0], NOTHING, vocab_size=300)
    workdir.write_config(config, {"decay_steps": config.optim.decay_steps})
    return workdir


def test_a_new_run_with_the_config_of_another_finds_the_end_of_its_own_schedule(stored: Workdir):
    assert stored.read_config().optim.decay_steps == TINY.steps
    config, given = read(f"--config {stored.config} --steps 9000 --workdir other")
    assert resolve(config, given, vocab_size=300).optim.decay_steps == 9000


def test_a_given_end_of_the_schedule_is_passed_on(tmp_path: Path):
    workdir = Workdir(tmp_path)
    workdir.write_config(read("--optim.decay-steps 70")[0], {})
    assert workdir.read_config().optim.decay_steps == 70
    assert read(f"--config {workdir.config} --steps 9000")[0].optim.decay_steps == 70


def test_resuming_writes_the_same_config_again(stored: Workdir):
    before = stored.config.read_bytes()
    stored.write_config(resumed(stored, *read()), stored.record())
    assert stored.config.read_bytes() == before


def test_the_help_names_the_presets(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        read("--help")
    shown = capsys.readouterr().out
    for name in RECIPES:
        assert name in shown


def test_resuming_keeps_what_data_and_length_had_filled_in(stored: Workdir):
    config = resumed(stored, *read("--steps 9000 --log-every 3"))
    assert (config.run.steps, config.run.log_every) == (9000, 3)
    assert config.model.vocab_size == 300
    assert config.optim.decay_steps == TINY.steps


def test_resuming_with_its_own_config_changes_nothing(stored: Workdir):
    command = read(f"--config {stored.config} --workdir {stored.root}")
    assert not differences(resumed(stored, *command), stored.read_config())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--seed 5", "run.seed: 0 there, 5 now"),
        ("--activation swiglu", "model.activation: 'poly_norm' there, 'swiglu' now"),
        ("--model.vocab-size 400", "model.vocab_size: 300 there, 400 now"),
        ("--optim.decay-steps 70", f"optim.decay_steps: {TINY.steps} there, 70 now"),
        (
            "--data a.txt --batch-size 1",
            f"batch_size: {TINY.batch_size} .* 'stdlib' there, 'a.txt' now",
        ),
    ],
)
def test_resuming_with_other_settings_is_refused_with_both_values(
    stored: Workdir, command: str, message: str
):
    with pytest.raises(InputError, match=message):
        resumed(stored, *read(command))


def test_moving_the_folder_or_the_cache_is_no_difference(stored: Workdir):
    resumed(stored, *read("--workdir elsewhere --data.cache-dir /elsewhere"))


def test_another_machine_may_resume(stored: Workdir):
    hosts = "--hosts.coordinator a:1 --hosts.count 2 --hosts.index 1 --hosts.lost-after-s 9"
    config = resumed(stored, *read(f"--mesh.fsdp 2 {hosts}"))
    assert (config.mesh.fsdp, config.hosts.count) == (2, 2)


def test_other_data_are_refused_with_both_fingerprints(tmp_path: Path):
    workdir = Workdir(tmp_path)
    began = {
        "data_fingerprint": "abc",
        "tokenizer_fingerprint": "t",
        "data": {"files": {"a.txt": "1"}, "train": {"bytes": 3}},
    }
    workdir.write_config(default_config("tiny"), began)
    workdir.check_data(began)
    now = {
        "data_fingerprint": "xyz",
        "tokenizer_fingerprint": "t",
        "data": {"files": {"a.txt": "2", "b.txt": "3"}, "train": {"bytes": 3}},
    }
    with pytest.raises(InputError) as caught:
        workdir.check_data(now)
    message = str(caught.value)
    assert "data.files.a.txt: 1 there, 2 now; data.files.b.txt: none there, 3 now" in message
    assert "data_fingerprint: abc there, xyz now" in message
    assert "tokenizer" not in message
    assert "data.train" not in message


def test_another_tokenizer_is_named(tmp_path: Path):
    workdir = Workdir(tmp_path)
    began = {"data_fingerprint": "abc", "tokenizer_fingerprint": "t", "data": {}}
    workdir.write_config(default_config("tiny"), began)
    with pytest.raises(InputError, match="tokenizer_fingerprint: t there, u now"):
        workdir.check_data(began | {"data_fingerprint": "xyz", "tokenizer_fingerprint": "u"})


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    workdir = Workdir(tmp_path / "a" / "b")
    with (
        workdir.locked(),
        pytest.raises(InputError, match="Another run is writing to"),
        Workdir(workdir.root).locked(),
    ):
        pass
    with workdir.locked():
        pass


def test_a_folder_without_a_run_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(InputError, match=r"no run in .*experiments\.pretrain --workdir"):
        Workdir(tmp_path).read_config()


def test_inheriting_takes_nothing_that_was_given():
    config = default_config("tiny")
    other = resolve(config, NOTHING, vocab_size=300)
    assert inherit(config, frozenset({"model.vocab_size"}), other).model == config.model
