"""Config files: values are what was written, or refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run_config

from experiments.run.command import ALIASES, from_file
from experiments.run.config import default_config, nested
from experiments.run.folder import Workdir
from experiments.run.yaml_file import read_yaml
from experiments.terminal import flags
from polycom_jax import InputError
from polycom_jax.data import DataConfig


def read(path: Path, text: str) -> Any:
    path.write_text(text, encoding="utf-8")
    return run_config(["--config", str(path)])[0]


WORDS = (
    *("no", "yes", "on", "off", "y", "true", "False", "0x1F", "0o17", "010", "12:30", "1.50"),
    *("1_000", ".5", "6e-4", "+1", "-0", ".inf", ".NaN", "2020-01-01", "2020-1-1", "=", "<<"),
    *("2001-12-14t21:59:43.10-05:00", "0b11", "190:20:30.15", "None", "none", "~x"),
)


def words(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    """What the settings of a file are as words of a command line."""
    path.write_text(text, encoding="utf-8")
    base = flags.flatten(default_config("tiny"))
    return {found.name: found.words for found in read_yaml(path, base, ALIASES)}


def test_text_is_what_was_written(tmp_path: Path):
    for word in WORDS:
        for text in (word, f"'{word}'", f'"{word}"', f"|-\n    {word}"):
            found = words(tmp_path / "c.yaml", f"run:\n  sample_prompt: {text}\n")
            assert found == {"run.sample_prompt": (word,)}
    for word in ("no", "12:30", "None", "~x"):
        config = read(tmp_path / "c.yaml", f"run:\n  sample_prompt: {word}\n")
        assert config.run.sample_prompt == word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *(("6e-4", 6e-4), ("6E-4", 6e-4), (".5", 0.5), ("5.", 5.0), ("+1", 1.0), ("1_0.5", 10.5)),
        *(("1e3", 1000.0), ("010", 10.0), ("0.1", 0.1), ("1.0e-05", 1e-5), ("5", 5.0)),
    ],
)
def test_numbers_are_numbers(tmp_path: Path, word: str, value: float):
    config = read(tmp_path / "c.yaml", f"optim: {{peak_learning_rate: {word}}}")
    assert config.optim.peak_learning_rate == value


@pytest.mark.parametrize(("word", "value"), [("010", 10), ("1_000", 1000), ("+7", 7), ("0", 0)])
def test_whole_numbers_are_decimal(tmp_path: Path, word: str, value: int):
    assert read(tmp_path / "c.yaml", f"run: {{seed: {word}}}").run.seed == value


@pytest.mark.parametrize(
    ("key", "word"),
    [
        *(("seed", word) for word in ("0x1F", "0o17", "0b11", "12:30", "1e3", "1.0", "no", "true")),
        *(("seed", word) for word in ("2020-01-01", "1_", ".inf", "~", "null", "")),
        *(("deterministic", word) for word in ("yes", "no", "on", "off", "1", "y", "~", '"true"')),
        *(("grace_s", word) for word in ("12:30", "0x10", ".nan", "2020-01-01", "yes")),
        *(("sample_prompt", word) for word in ("~", "null", "Null", "")),
        *(("compiler_options", word) for word in ("", "~", "[null]", "[[a=b]]")),
    ],
)
def test_what_a_field_does_not_take_is_refused(tmp_path: Path, key: str, word: str):
    with pytest.raises(InputError, match=key.replace("_", "[-_]")) as caught:
        read(tmp_path / "c.yaml", f"run:\n  {key}: {word}\n")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("word", ["null", "Null", "NULL", "~", "", "None"])
def test_what_may_be_none_is(tmp_path: Path, word: str):
    config = read(tmp_path / "c.yaml", f"optim:\n  clip_norm: {word}\ndata:\n  heldout: {word}\n")
    assert config.optim.clip_norm is None
    assert config.data.heldout is None


@pytest.mark.parametrize(("word", "value"), [("true", True), ("TRUE", True), ("False", False)])
def test_booleans_are_those_of_yaml_1_2(tmp_path: Path, word: str, value: bool):
    config = read(tmp_path / "c.yaml", f"run: {{deterministic: {word}, compile_cache: {word}}}")
    assert (config.run.deterministic, config.run.compile_cache) == (value, value)


def test_infinity_and_quoted_text_come_through(tmp_path: Path):
    config = read(
        tmp_path / "c.yaml",
        'run:\n  grace_s: .inf\n  sample_prompt: "no\\n"\ndata: {text_field: "~"}',
    )
    assert config.run.grace_s == float("inf")
    assert config.run.sample_prompt == "no\n"
    assert config.data.text_field == "~"
    with pytest.raises(InputError, match="'None' cannot be told from none"):
        read(tmp_path / "c.yaml", 'data: {heldout: "None"}')


def test_lists_hold_text_as_written(tmp_path: Path):
    options = "[a=0x1F, b=no, c=12:30]"
    config = read(tmp_path / "c.yaml", f"run: {{compiler_options: {options}}}")
    assert config.run.compiler_options == ("a=0x1F", "b=no", "c=12:30")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n", "the section `run:` is empty"),
        ("run:\n  # steps: 7\ndata: {batch_size: 2}", "the section `run:` is empty"),
        ("data:\n", "the section `data:` is empty"),
        ("model: {}\n", "the section `model:` is empty"),
        ("model: {moe: ~}", "the section `model.moe:` is empty"),
        ("run: 3", "'run' is a section, which takes no value but keys such as `steps:`"),
        ("optim: [a, b]", "'optim' is a section"),
        ("run: {steps: 1}\n---\nrun: {steps: 2}", "expected a single document"),
        ("run:\n\tsteps: 1", "'\\\\t' that cannot start any token"),
        ("run: {steps: 1, steps: 2}", "the key 'steps' twice"),
        ('run: {steps: 1, "steps": 2}', "the key 'steps' twice"),
        ("run: {<<: {steps: 2}}", "Unknown key .*'run.<<.steps'"),
        ("x: &a {steps: 1}\nrun: *a", "it has an alias"),
        ("run: {steps: !!int 5}", r"it has a tag \(!!int\)"),
        ("run: {steps: !!str 5}", r"it has a tag \(!!str\)"),
        ("? [run]\n: 3", "a key that is no word"),
        ("~", "must hold sections such as `optim:`, not a text"),
        ("steps", "must hold sections such as `optim:`, not a text"),
        ("- run", "must hold sections such as `optim:`, not a list"),
        ("no: 1", "Unknown key .*'no'"),
        ("run: {no: 1}", "Unknown key .*'run.no'"),
    ],
)
def test_what_is_no_config_is_told_so(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "c.yaml", text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\n\n", "\ufeff# a mark\n", "{}"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str):
    config = read(tmp_path / "c.yaml", text)
    assert config.run == default_config("tiny").run


def test_every_default_is_written_and_read_as_it_was(tmp_path: Path):
    for preset in ("tiny", "moe-1b-7b", "dense-1b"):
        config = default_config(preset)
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(nested(config)).replace("!!python/tuple", ""), "utf-8")
        assert flags.flatten(from_file(path)) | {"workdir": None} == flags.flatten(config)


def test_a_run_s_own_file_gives_the_text_back(tmp_path: Path):
    config = default_config("tiny")
    for prompt in (*WORDS, "", " a ", "'", '"', "a: b # c", "é\u2028", "- x"):
        changed = replace(config, run=replace(config.run, sample_prompt=prompt))
        Workdir(tmp_path).write_config(changed, {})
        found = words(tmp_path / "config.yaml", Workdir(tmp_path).config.read_text("utf-8"))
        assert found["run.sample_prompt"] == (prompt,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  seed: 5\n - x\n", r"expected <block end>.* in line 3 \(.*from line 1 on\)\.$"),
        ('a: "x\ny\n', r"found unexpected end of stream in line 3 \(.*from line 1 on\)\.$"),
        ("model: [1,\n", r".*expected the node content.* in line 2 \(while.*\)\.$"),
    ],
)
def test_what_is_no_yaml_is_told_in_one_line_with_its_number(
    tmp_path: Path, text: str, message: str
):
    with pytest.raises(InputError, match=f"is not valid YAML: {message}") as caught:
        read(tmp_path / "c.yaml", text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("word", "number"), [("1e3", 1000), ("2E+2", 200), ("50.0", 50)])
def test_a_whole_number_in_another_notation_is_refused_with_the_one_to_write(
    tmp_path: Path, word: str, number: int
):
    message = f"--run.steps takes a whole number, not '{re.escape(word)}'; write {number}\\."
    with pytest.raises(InputError, match=message):
        read(tmp_path / "c.yaml", f"run: {{steps: {word}}}")
    with pytest.raises(InputError, match=message):
        run_config(["--steps", word])
    with pytest.raises(InputError, match="steps: invalid literal"):
        read(tmp_path / "c.yaml", "run: {steps: 1e-3}")


def test_a_hugging_face_folder_in_the_place_of_a_run_is_told_how_to_make_one(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    message = rf"is a Hugging Face folder .*experiments\.convert {tmp_path} --workdir"
    with pytest.raises(InputError, match=message):
        Workdir(tmp_path).read_config()


def test_text_of_a_run_that_is_gone_is_asked_for_by_its_new_path(tmp_path: Path):
    data = DataConfig(source=str(tmp_path / "gone.txt"))
    with pytest.raises(InputError, match=r"no such file.*--workdir /r --data NEWPATH` goes on"):
        Workdir(Path("/r")).check_data_there(data)
    (tmp_path / "there.txt").write_text("text")
    there = DataConfig(source=str(tmp_path / "there.txt"))
    data = replace(there, heldout=str(tmp_path / "gone.txt"))
    with pytest.raises(InputError, match=r"no such file.*--data\.heldout NEWPATH` goes on"):
        Workdir(Path("/r")).check_data_there(data)
    Workdir(Path("/r")).check_data_there(there)
