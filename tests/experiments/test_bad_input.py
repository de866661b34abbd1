"""Bad input to the programs, hundreds of kinds: one line, a non-zero code, nothing written."""

import os
import string
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from experiments import generate, replay
from experiments.analyze import __main__ as analyze
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark.options import Options
from experiments.compare import __main__ as compare
from experiments.compare import comparing
from experiments.compare.config import SCALES
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.faults import __main__ as faults
from experiments.generate import GenerateConfig
from experiments.plan import __main__ as plan
from experiments.pretrain import __main__ as pretrain
from experiments.run.command import ALIASES
from experiments.run.config import default_config
from experiments.sobolev import __main__ as sobolev
from experiments.terminal import flags

ROOT = Path(__file__).resolve().parents[2]

RUN = flags.flatten(default_config("tiny"))
OTHER: dict[str, dict[str, Any]] = {
    "generate": flags.flatten(GenerateConfig()),
    "benchmark": flags.flatten(Options()),
    "evaluate": flags.flatten(evaluate.EvaluateConfig()),
    "analyze": flags.flatten(analyze.AnalyzeConfig()),
    "replay": flags.flatten(replay.ReplayConfig()),
    "compare": flags.flatten(SCALES["cpu"]),
    "sobolev": flags.flatten(sobolev.STUDIES["train"].default),
}
FIRST = {"sobolev": ("train",), "convert": ("absent", "--out", "exported")}
"""Words that a program wants before the others."""
PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "pretrain": pretrain.main,
    "plan": plan.main,
    "generate": generate.main,
    "benchmark": benchmark.main,
    "evaluate": evaluate.main,
    "analyze": analyze.main,
    "replay": replay.main,
    "compare": compare.main,
    "sobolev": sobolev.main,
    "convert": convert.main,
    "faults": faults.main,
}


@dataclass(frozen=True)
class Bad:
    """What a program must refuse: its words, and the YAML file that stands for CONFIG in them."""

    program: str
    words: tuple[str, ...]
    yaml: bytes = b""


def fields_of(program: str) -> dict[str, Any]:
    return OTHER.get(program, RUN)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
GARBAGE = TEXT.filter(lambda text: not any(c.isdigit() for c in text) and text.lower() not in NAMES)
NAMES = ("none", "inf", "nan", "infinity", "-inf", "+inf", "-nan", "+nan", "-infinity", "+infinity")
# What every number in a config refuses, and what whole ones do.
WRONG_NUMBERS = ["-2", "1" + "0" * 60, "9" * 5000, "1e400", "-1e400", "inf", "nan"]
NOT_WHOLE = ["4294967296", "1.5", "1e3", "0x10"]
HOSTILE = st.sampled_from(["\0", "a\0b", "\udcff", "x" * 3 + "\ud800"])


OWN_FLAGS = (
    *("hardware", "json", "search", "quick"),  # of plan, compare and sobolev
    *("source", "checkpoint", "target", "dtype", "fit_batches"),  # of convert
    *("kills", "seed", "out"),  # of faults
)


@st.composite
def unknown_flags(draw: st.DrawFn) -> Bad:
    program = draw(st.sampled_from(sorted(PROGRAMS)))
    name = draw(st.text(string.ascii_letters + string.digits + "-_.=é", min_size=1, max_size=12))
    names = {*fields_of(program), *ALIASES, "config", "help", "", *OWN_FLAGS}
    known = names | {name.rpartition(".")[2] for name in names}
    if name.partition("=")[0].replace("-", "_") in known:
        name = f"x{name}x"
    return Bad(program, (f"--{name}", *draw(st.lists(GARBAGE, max_size=2))))


@st.composite
def stray_words(draw: st.DrawFn) -> Bad:
    program = draw(st.sampled_from(sorted(PROGRAMS)))
    word = draw(TEXT.filter(lambda text: not text.startswith("-")))
    return Bad(program, (f"no-such-{word}", *draw(st.lists(GARBAGE, max_size=2))))


@st.composite
def wrong_values(draw: st.DrawFn) -> Bad:
    program = draw(st.sampled_from(sorted(PROGRAMS)))
    numbers = {name: value for name, value in fields_of(program).items() if is_number(value)}
    name = draw(st.sampled_from(sorted(numbers)))
    wrong = WRONG_NUMBERS + NOT_WHOLE * isinstance(numbers[name], int)
    value = draw(st.one_of(GARBAGE, st.sampled_from(wrong)))
    return Bad(program, (f"{flags.flag_name(name)}={value}",))


CHECKED = ["pretrain", "plan", "generate", "evaluate", "analyze", "replay", "compare", "faults"]


@st.composite
def hostile_text(draw: st.DrawFn) -> Bad:
    program = draw(st.sampled_from(CHECKED))
    texts = sorted(n for n, value in fields_of(program).items() if isinstance(value, str))
    return Bad(program, (f"{flags.flag_name(draw(st.sampled_from(texts)))}={draw(HOSTILE)}",))


MAY_BE_NONE = ("clip_norm",)
WITH_FILES = ["pretrain", "plan", "convert", "faults"]
SCALARS = st.one_of(
    st.sampled_from([None, True, [], {}, [[1]], [{}], {"a": 1}, {1: {2: 3}}, [None]]),
    TEXT.map(lambda text: f"no-such-{text}"),
)


@st.composite
def wrong_yaml(draw: st.DrawFn) -> Bad:
    """Keys that there are, with values that no number is."""
    import yaml

    numbers = sorted(name for name, value in RUN.items() if is_number(value) and "." in name)
    section, _, field = draw(st.sampled_from(numbers)).partition(".")
    value = draw(SCALARS.filter(lambda value: value is not None or field not in MAY_BE_NONE))
    inner: dict[str, Any] = {}
    tree = {section: inner}
    *path, last = field.split(".")
    for name in path:
        inner[name] = inner = {}
    inner[last] = value
    text = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    return Bad(draw(st.sampled_from(WITH_FILES)), ("--config", "CONFIG"), text)


def is_no_mapping(raw: bytes) -> bool:
    """Whether these bytes cannot be a config with nothing wrong in it."""
    lines = raw.decode("utf-8-sig", "replace").splitlines()  # a mark of byte order says nothing
    return any(line.strip() and not line.lstrip().startswith(("#", "---", "%")) for line in lines)


BROKEN_YAML = st.sampled_from(
    [
        b"run: {steps: 3",
        b"run: {steps: 3}\nrun: {seed: 1}",
        b"\ttabs: 1",
        b"- 1\n- 2",
        b"just text",
        b"3",
        b"? [a, b]\n: c",
        b"1: 2",
        b"null: 2",
        b"run: !!python/object/apply:os.system ['touch EXECUTED']",
        b"!!python/object/new:subprocess.Popen [['touch', 'EXECUTED']]",
        b"run: !!python/name:os.system",
        b"run: {steps: !!int x}",
        b"run: {steps: !!float x}",
        b"run: {steps: !!timestamp x}",
        b"run: {steps: 2001-99-99}",
        b"run: {steps: 2001-01-01}",
        b"run: {steps: !!binary aGk=}",
        b"run: {steps: !!set {a, b}}",
        b"run: {steps: 0x" + b"f" * 5000 + b"}",
        b"run: {steps: " + b"9" * 5000 + b"}",
        b"run: &a {steps: *a}",
        b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]",
        b"[" * 5000,
        b"{a: " * 5000,
        b"x: 1\n" * 300_000,
        b"\xff\xfe\x00",
        b"\x00",
        "run: {steps: ٣}".encode() + b"\xc3",
        b"model: {preset: [tiny, tiny]}",
        b"model: {preset: no-such}",
        b"workdir: {a: b}",
        b"optim: {decay_roles: [[matrix]]}",
        b"optim: {decay_roles: {matrix: 1}}",
        b"run: {compiler_options: ['=']}",
    ]
)


@st.composite
def broken_yaml(draw: st.DrawFn) -> Bad:
    raw = draw(st.one_of(BROKEN_YAML, st.binary(min_size=1, max_size=40).filter(is_no_mapping)))
    return Bad(draw(st.sampled_from(WITH_FILES)), ("--config", "CONFIG"), raw)


CHEAP = st.one_of(unknown_flags(), stray_words(), broken_yaml(), wrong_yaml())
PARSED = st.one_of(wrong_values(), hostile_text())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; nothing that is refused may reach what starts a run."""

    def reached(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("bad input was accepted")

    for module, name in (
        *((pretrain, "run"), (plan, "find_slice"), (benchmark, "run"), (convert, "mesh_of")),
        *((evaluate, "make_mesh"), (comparing, "Comparing"), (sobolev, "importlib")),
        (faults, "KillTest"),
    ):
        monkeypatch.setattr(module, name, reached)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYCOM_CACHE", str(tmp_path.parent / "cache"))
    return tmp_path


def command(bad: Bad, config: Path) -> list[str]:
    words = (*FIRST.get(bad.program, ()), *bad.words)
    return [str(config) if word == "CONFIG" else word for word in words]


def check(bad: Bad, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = here.parent / f"{here.name}.yaml"
    config.write_bytes(bad.yaml)
    code = PROGRAMS[bad.program](command(bad, config))
    shown = capsys.readouterr()
    assert code == 2, (code, shown)
    assert shown.err.startswith("error: "), shown
    assert shown.err.count("\n") == 1, shown
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(here.iterdir()) == []


QUICK = settings(
    deadline=None,
    derandomize=True,  # the same on every machine; other seeds are tried by hand
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize(("kinds", "count"), [(CHEAP, 300), (PARSED, 50)], ids=["cheap", "parsed"])
def test_bad_input_is_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], kinds: st.SearchStrategy[Bad], count: int
):
    seen: set[Bad] = set()

    @given(kinds)
    @settings(QUICK, max_examples=count + count // 4)
    def one(bad: Bad) -> None:
        check(bad, here, capsys)
        seen.add(bad)

    one()
    assert len(seen) >= count


def real_processes() -> list[list[str]]:
    """Five bad commands for each program, CONFIG being a file with a wrong value."""
    run = [
        ["--stepz", "3"],
        ["--steps", "0"],
        ["--config", "CONFIG"],
        ["--model", "dense-2b"],
        ["--data.batch-size", "many"],
    ]
    return [
        *(["pretrain", *words] for words in run),
        *(["plan", *words] for words in run[:4]),
        ["plan", "absent.yaml"],
        ["generate", "absent"],
        ["generate", "--max-new-tokens", "0"],
        ["generate", "--promt", "x"],
        ["generate", "--temperature", "nan"],
        ["generate", "stray"],
        ["benchmark", "opss"],
        ["benchmark", "--rounds", "0"],
        ["benchmark", "--dtype", "float8"],
        ["benchmark", "--sample-seconds", "-inf"],
        ["benchmark", "--out"],
    ]


@pytest.mark.exhaustive
def test_bad_input_to_real_processes_is_refused_in_one_line(tmp_path: Path):
    here = tmp_path / "here"
    here.mkdir()
    config = tmp_path / "bad.yaml"
    config.write_text("run: {steps: -3}\n")
    commands = real_processes()
    assert len(commands) == 20

    def start(words: list[str]) -> subprocess.CompletedProcess[bytes]:
        words = [str(config) if word == "CONFIG" else word for word in words]
        return subprocess.run(
            [sys.executable, "-m", f"experiments.{words[0]}", *words[1:]],
            cwd=here,
            env=os.environ | {"PYTHONPATH": str(ROOT), "POLYCOM_CACHE": str(tmp_path / "cache")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )

    with ThreadPoolExecutor(2) as threads:
        for words, ended in zip(commands, threads.map(start, commands), strict=True):
            error = ended.stderr.decode()
            assert ended.returncode == 2, (words, error)
            assert error.startswith("error: "), (words, error)
            assert error.count("\n") == 1, (words, error)
            assert ended.stdout == b"", words
    assert list(here.iterdir()) == []
