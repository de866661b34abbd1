"""What all programs have in common on a command line: their help, their words, what they list."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import __main__ as door
from experiments import generate, replay
from experiments.activations import __main__ as activations
from experiments.analyze import __main__ as analyze
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark.options import Options
from experiments.compare import config as compare
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.faults import __main__ as faults
from experiments.plan import __main__ as plan
from experiments.pretrain import __main__ as pretrain
from experiments.run.command import Command, from_command
from experiments.run.files import hand_over, write_json
from experiments.sobolev.__main__ import STUDIES
from experiments.terminal import flags
from polycom_jax import InputError
from polycom_jax.table import ACTIVATIONS
from polycom_jax.training import RECIPES

ROOT = Path(__file__).resolve().parents[2]

POSITIONAL = {
    **dict.fromkeys(("pretrain", "generate", "replay"), "[RUN]"),
    **dict.fromkeys(("evaluate", "analyze"), "[RUN ...]"),
    **dict.fromkeys(("plan", "faults"), "[CONFIG]"),
    "convert": "RUN_OR_FOLDER",
    "compare": "[STUDY]",
    "benchmark": "[SUITE ...]",
    "activations": "[ACTIVATION ...]",
}
"""Program -> what stands first on its command line."""

WITH_RUN_FLAGS = ("pretrain", "plan", "faults", "convert")
WITH_OUT = ("activations", "analyze", "benchmark", "compare", "faults", "convert")
WITH_JSON = (
    *("generate", "replay", "evaluate", "analyze", "plan", "faults", "compare", "benchmark"),
    "activations",
)
WITH_WORKDIR = ("pretrain", "plan", "convert", "faults")
WITH_SEED = ("pretrain", "generate", "faults", "convert", "plan")
WITH_LIST = (*WITH_RUN_FLAGS, "activations", "evaluate", "compare", "benchmark")
SECTIONS = ("model", "optim", "data", "mesh", "hosts", "run")
OLD = ("--source", "--target", "--runs", "--suites", "--study")

COMMANDS: dict[str, Command] = {
    "pretrain": pretrain.PretrainCommand(),
    "plan": plan.PlanCommand(),
    "faults": faults.FaultsCommand(),
    "convert": convert.ConvertCommand(),
}
LINES: dict[str, Any] = {
    name: module.LINE
    for name, module in {
        **{"pretrain": pretrain, "plan": plan, "faults": faults, "convert": convert},
        **{"generate": generate, "replay": replay, "evaluate": evaluate, "analyze": analyze},
        **{"compare": compare, "benchmark": benchmark, "activations": activations},
    }.items()
}


def main_of(program: str) -> Callable[[list[str]], int]:
    try:
        return importlib.import_module(f"experiments.{program}.__main__").main
    except ModuleNotFoundError:
        return importlib.import_module(f"experiments.{program}").main


def shown(program: str, word: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main_of(program)([word]) == 0
    return capsys.readouterr().out


def boxes(text: str) -> dict[str, str]:
    """The boxes of a help, by their titles, in order; a terminal without UTF-8 has no frames."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip("╭╮╰╯│─ ")
        if re.fullmatch(r"positional arguments|([\w.]+ )?options", line):
            found[line] = ""
        elif found:
            found[list(found)[-1]] += f"{line}\n"
    return found


def options(text: str) -> set[str]:
    """The flags that a help has entries for."""
    entries = re.findall(r"^[│ ]*(--[^ ].*)", text, re.MULTILINE)
    return {flag for entry in entries for flag in re.findall(r"--[a-z0-9.-]+", entry)}


def test_the_door_lists_every_program(capsys: pytest.CaptureFixture[str]):
    assert door.main() == 0
    text = capsys.readouterr().out
    assert {*door.programs()} == {*POSITIONAL, "geometry", "sobolev", "tokenize", "vision"}
    for name, about in door.programs().items():
        assert f"{name:<12}{about}\n" in text
        assert len(about) > 10
    assert "python -m experiments.pretrain" in text


def test_the_door_opens_without_jax():
    code = "import sys, experiments.__main__ as m; m.main(); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", POSITIONAL)
def test_help_shows_a_program_s_own_flags_first(program: str, capsys: pytest.CaptureFixture[str]):
    found = boxes(shown(program, "--help", capsys))
    titles = list(found)
    assert titles[:2] == ["positional arguments", "options"]
    assert POSITIONAL[program] in found["positional arguments"]
    if program in WITH_RUN_FLAGS:
        assert [title for title in titles[2:] if "." not in title] == [
            f"{name} options" for name in SECTIONS
        ]
        assert not [flag for flag in options(found["options"]) if "." in flag]
    for flag, programs in (("--out", WITH_OUT), ("--json", WITH_JSON)):
        assert (flag in options(found["options"])) == (program in programs), flag


@pytest.mark.parametrize("program", POSITIONAL)
def test_help_names_what_is_everywhere_the_same(program: str, capsys: pytest.CaptureFixture[str]):
    text = shown(program, "--help", capsys)
    assert ("--seed" in options(text)) == (program in WITH_SEED)
    assert ("--list prints" in text) == (program in WITH_LIST)
    assert not {*OLD} & options(text)
    assert ("--workdir" in options(text)) == (program in WITH_WORKDIR)


def test_the_flags_of_tokenising_are_those_of_a_run_that_reads_the_tokens(
    capsys: pytest.CaptureFixture[str],
):
    found = boxes(shown("tokenize", "--help", capsys))
    assert list(found) == ["options", "data options"]
    assert {"--workers", "--executor", "--vocab-size"} <= options(found["options"])
    short = {"--data", "--tokenizer", "--cache-dir", "--data.text-field", "--data.heldout"}
    assert short <= options(found["data options"])
    assert "--data.batch-size" not in options(found["data options"])


@pytest.mark.parametrize("program", COMMANDS)
def test_no_flag_is_shown_that_is_refused(program: str, capsys: pytest.CaptureFixture[str]):
    text, line = shown(program, "--help", capsys), LINES[program]
    short = {name: alias for alias, name in line.short.items()}
    for name in line.refused:
        assert flags.flag_name(name) not in options(text)
        assert flags.flag_name(short.get(name, "no such")) not in options(text)
        with pytest.raises(InputError, match=f"{name}: {line.why_refused}"):
            from_command(line, COMMANDS[program], [f"{flags.flag_name(name)}=1"])
    left = {*flags.flatten(COMMANDS[program])} - line.refused - {POSITIONAL_FIELDS.get(program)}
    assert {flags.flag_name(name) for name in left} <= options(text)


POSITIONAL_FIELDS = {"pretrain": "resume", "plan": "config", "faults": "config"} | {
    "convert": "source"
}


def test_a_refused_field_is_refused_in_a_file_too(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("data: {cache_dir: c}\n")
    with pytest.raises(InputError, match=r"data\.cache_dir: prepared data lie in --out"):
        from_command(faults.LINE, faults.FaultsCommand(), [str(path)])


@pytest.mark.parametrize("program", WITH_LIST)
def test_list_prints_names(program: str, capsys: pytest.CaptureFixture[str]):
    text = shown(program, "--list", capsys)
    for heading, names in LINES[program].lists.items():
        assert f"{heading}: " in text
        assert all(str(name) in text for name in names)
    if program in WITH_RUN_FLAGS:
        assert all(name in text.split() for name in (*RECIPES, *ACTIVATIONS))


def test_the_studies_of_sobolev_follow_the_same_rules(capsys: pytest.CaptureFixture[str]):
    listed = shown("sobolev", "--list", capsys)
    assert all(name in listed.split() for name in (*STUDIES, *ACTIVATIONS))
    for study in STUDIES:
        assert main_of("sobolev")([study, "--help"]) == 0
        text = capsys.readouterr().out
        found = boxes(text)
        assert list(found) == ["options"]
        assert {"--out", "--json"} <= options(found["options"])
        assert "--workdir" not in options(text)


@pytest.mark.parametrize(
    ("new", "old", "default"),
    [
        ("generate", "--workdir r --greedy", generate.GenerateConfig()),
        ("replay", "--workdir r --step 3", replay.ReplayConfig()),
        ("evaluate", "--workdir r --data a b", evaluate.EvaluateConfig()),
        ("analyze", "--runs r s --tokens 5", analyze.AnalyzeConfig()),
        ("benchmark", "--suites ops ffn --rounds 2", Options()),
        ("compare", "--study order --seeds 3", compare.SCALES["cpu"]),
    ],
)
def test_old_spellings_work(new: str, old: str, default: Any):
    line = LINES[new]
    first, *rest = old.split()
    assert line(default, [first, *rest]) == line(default, rest) != default


@pytest.mark.parametrize("program", ["generate", "replay", "evaluate", "pretrain"])
def test_what_stands_first_has_no_flag_of_its_own(program: str, capsys: pytest.CaptureFixture[str]):
    for flag in ("--run", "--runs", "--resume"):
        assert main_of(program)([flag, "r"]) == 2
        assert f"Unknown flag '{flag}'" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["generate", "replay", "evaluate"])
def test_a_run_has_a_name(program: str, capsys: pytest.CaptureFixture[str]):
    assert main_of(program)(["--workdir"]) == 2
    assert "takes a value" in capsys.readouterr().err
    assert main_of(program)(["--help", "r"]) == 0
    assert "usage" in capsys.readouterr().out


def test_old_spellings_of_results_work():
    assert compare.from_command(["--workdir", "w"]).out == "w"
    old, new = "--source s --target t --dtype float16", "s --out t --dtype float16"
    commands = [
        from_command(convert.LINE, COMMANDS["convert"], text.split()) for text in (old, new)
    ]
    assert commands[0] == commands[1]
    for path in (["--config", str(ROOT / "tpu_configs" / "v5e-16-dense-1b.yaml")],):
        assert from_command(plan.LINE, plan.PlanCommand(), path) == from_command(
            plan.LINE, plan.PlanCommand(), path[1:]
        )


def test_words_of_a_fault_test_reach_the_run():
    words = "--kills 3 --seed 4 --out o --json=- --steps 30 --run.seed 5 --run.sample-prompt=-x"
    assert faults.run_words(words.split()) == [
        *("--steps", "30", "--run.seed", "5", "--run.sample-prompt=-x"),
    ]
    assert faults.run_words(["c.yaml", "--out=o"]) == ["--config", "c.yaml"]


def test_a_flag_that_is_replaced_is_there_once():
    words = ["x", "controls", "--seeds=4", "--out", "a", "--quick", "--data", "b"]
    changed = {"--seeds": 8, "--out": "c", "--data": None}
    assert flags.replaced(words, changed) == [
        "x",
        "controls",
        "--quick",
        "--seeds",
        "8",
        "--out",
        "c",
    ]


def test_json_goes_to_a_file_or_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = {"loss": float("nan"), "rows": (1, 2)}
    write_json(str(tmp_path / "new" / "n.json"), record)
    write_json(None, record)
    assert capsys.readouterr().out == ""
    hand_over("-", tmp_path / "new" / "n.json")
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [1, 2]}
