"""Command lines: settings, their order, and errors of one line."""

import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Literal

import jax
import pytest

from experiments.run.command import ALIASES as RUN_ALIASES
from experiments.run.command import Command
from experiments.run.yaml_file import read_yaml
from experiments.terminal import flags
from experiments.terminal.program import Stop, program
from polycom_jax import InputError
from polycom_jax._errors import require
from polycom_jax.training.checkpoint import CheckpointWarning, ReadError, SaveError

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Part:
    """A section.

    Attributes:
        width: a number.
        kind: one of two.
        names: several.
        limit: a number or none.
        quick: yes or no.
    """

    width: int = 4
    kind: Literal["plain", "fancy"] = "plain"
    names: tuple[str, ...] = ("a", "b")
    limit: int | None = 3
    quick: bool = False

    def __post_init__(self) -> None:
        require(self.width >= 1, f"width={self.width} must be at least 1, {'and so on ' * 20}.")


@dataclass(frozen=True)
class Whole:
    """Everything."""

    part: Part = field(default_factory=Part)
    rate: float = 0.1
    text: str = ""


ALIASES = {"wide": "part.width"}
LINE = flags.CommandLine("prog", "about", short=ALIASES)


def parse(words: list[str], path: Path | None = None) -> Whole:
    settings = read_yaml(path, flags.flatten(Whole()), ALIASES) if path else []
    return LINE.parse(Whole(), settings + LINE.read(Whole(), words))


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_flags_set_nested_fields_of_every_kind():
    line = "--part.kind fancy --part.names x y z --part.limit None --rate=1e-3 --wide 7"
    whole = parse([*line.split(), "--part.quick", "--text", "-x -- y"])
    assert whole == Whole(Part(7, "fancy", ("x", "y", "z"), None, True), 1e-3, "-x -- y")


def test_underscores_and_dashes_are_one():
    read = [LINE.read(TINY, [flag, "1"]) for flag in ("--model.num_layers", "--model.num-layers")]
    assert read[0] == read[1] == [flags.Setting("model.num_layers", ("1",))]


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path):
    path = yaml_file(tmp_path, "part: {width: 5, limit: 9}\nrate: 1e-2\n")
    assert parse(["--wide", "6"], path) == Whole(Part(width=6, limit=9), rate=0.01)


def test_files_hold_lists_none_and_bools(tmp_path: Path):
    path = yaml_file(tmp_path, "part:\n  names: [x]\n  limit: null\n  quick: true\n")
    assert parse([], path).part == Part(names=("x",), limit=None, quick=True)
    path = yaml_file(tmp_path, "part: {names: []}\n")
    assert parse([], path).part.names == ()


def test_an_empty_file_sets_nothing(tmp_path: Path):
    assert parse([], yaml_file(tmp_path, "# nothing\n")) == Whole()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part.widht", "3"], r"Unknown flag '--part.widht'. Did you mean '--part.width'\?"),
        (["--limit", "3"], r"Did you mean '--part.limit'\?"),
        (["--wode", "3"], r"Did you mean '--wide'\?"),
        (["--nothing-at-all-alike", "3"], r"Unknown flag '--nothing-at-all-alike'. --help lists"),
        (["--part.names", "a", "--wide"], "--part.width takes a value"),
        (["stray"], "'stray' belongs to no flag"),
        (["--wide", "x"], r"^--part.width: .*'x' \(expected INT\)"),
        (["--wide"], "--part.width"),
        (["--wide", "3", "4"], "--part.width takes one value, not the 2 words '3' '4'; quote"),
        (["--text", "a", "b"], "--text takes one value, not the 2 words .* a glob"),
        (["--part.kind", "odd"], "'odd'.*plain.*fancy"),
        (["--part.quick", "maybe"], "'maybe'.*True.*False"),
    ],
)
def test_a_bad_flag_is_an_error_that_names_it(words: list[str], message: str):
    with pytest.raises(InputError, match=message):
        parse(words)


def test_choices_are_told_in_their_order_also_where_none_is_one():
    kinds = Literal["q", "c", "z", "a", "x", "b", "y"] | None
    line = flags.CommandLine("prog", "about")
    kind = make_dataclass("Kind", [("kind", kinds, None)])
    with pytest.raises(InputError, match="expected one of q, c, z, a, x, b, y, None"):
        line(kind(), ["--kind", "other"])


def test_what_a_config_refuses_comes_through_whole():
    with pytest.raises(InputError, match=r"^width=0 must be at least 1, (and so on ){20}\."):
        parse(["--wide", "0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: {widht: 3}", r"Unknown key in .*: 'part.widht'. Did you mean 'part.width'\?"),
        ("part: 3", "Unknown key in .*: 'part'"),
        ("rate: {a: 1}", r"Unknown key in .*: 'rate.a'"),
        ("rate: {}", "rate takes a value, not a section"),
        ("rate: [1, 2]", r"rate takes one value, not the list \[1, 2\]"),
        ("text:", "text is empty"),
        ("wide: 3\npart: {width: 3}", "sets part.width twice"),
        ("- 1\n- 2", "must hold sections such as `optim:`, not a list"),
        ("part: {width: 3", "not valid YAML"),
        ("part: {width: 3}\nrate: 1\npart: {limit: 3}", "it has the key 'part' twice"),
        ("part:\n  width: 3\n  width: 3", "'width' twice"),
        ("part: {width: abc}", "--part.width.*'abc'"),
        ("rate:", "--rate.*'None'"),
    ],
)
def test_a_bad_file_is_an_error_that_says_where(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message):
        parse([], yaml_file(tmp_path, text))


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        parse([], tmp_path / "none.yaml")


def test_a_program_prints_one_line_for_bad_input_and_exits_with_two(
    capsys: pytest.CaptureFixture[str],
):
    @program
    def main(argv):
        raise InputError(f"several\n  lines {argv}")

    assert main(["x"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: several lines ['x']\n"
    assert captured.out == ""


def test_a_program_that_stops_gives_its_own_code(capsys: pytest.CaptureFixture[str]):
    @program
    def main(argv):
        raise Stop("enough", code=143)

    assert main([]) == 143
    assert capsys.readouterr().err == "ended: enough\n"


@pytest.mark.parametrize(
    "error",
    [
        SaveError("not saved"),
        ReadError("cannot be read now"),
        PermissionError(13, "Permission denied", "w/a.txt"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_exit_code_one(
    error: Exception, capsys: pytest.CaptureFixture[str]
):
    @program
    def main(argv):
        raise error

    assert main([]) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_closed_pipe_is_one_line_and_exit_code_one():
    code = """
        import sys
        from experiments.terminal.program import program
        @program
        def main(argv):
            print("text")  # lies in a buffer until the end
            return 0
        sys.exit(main([]))
    """
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=buffered,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert ended.returncode == 1
    assert ended.stderr == "error: stdout was closed before all was written.\n"


def test_defects_keep_their_traceback():
    @program
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])


def test_help_lists_the_fields_and_ends_well(capsys: pytest.CaptureFixture[str]):
    @program
    def main(argv):
        parse(list(argv))
        return 5

    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("--part.width", "a number.", "(default: 4)", "about"):
        assert text in shown


def test_a_damaged_checkpoint_is_warned_of_in_a_line():
    @program
    def main(argv):
        return 0

    main([])
    text = warnings.formatwarning("checkpoint 3 is\n damaged", CheckpointWarning, "file.py", 3)
    assert text == "warning: checkpoint 3 is damaged\n"
    assert "file.py:3: UserWarning: else" in warnings.formatwarning(
        "else", UserWarning, "file.py", 3
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ],
)
def test_a_lack_of_memory_is_one_line_with_what_takes_less(
    error: Exception, capsys: pytest.CaptureFixture[str]
):
    @program
    def main(argv):
        raise error

    assert main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: not enough memory")
    assert "--batch-size" in told
    assert told.count("\n") == 1


def test_other_errors_of_the_device_keep_their_traceback():
    @program
    def main(argv):
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")

    with pytest.raises(jax.errors.JaxRuntimeError):
        main([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text: &a x\nrate: *a", "it has an alias"),
        ("text: !!python/object/apply:os.getcwd []", "not valid YAML: it has a tag .*os.getcwd"),
        ("rate: !!timestamp x", "not valid YAML"),
        ("rate: 2001-99-99", "--rate.*float: '2001-99-99'"),
        ("[" * 5000, "not valid YAML"),
        ("part: {names: [[a]]}", "takes one value, not the list"),
        ("part: {names: [{a: 1}]}", "takes a value, not a section"),
        ("text: !!binary aGk=", r"a tag \(!!binary\), and values are text, numbers and lists"),
        ("text: !!set {a, b}", r"a tag \(!!set\)"),
        ("rate: 0x" + "f" * 5000, "--rate.*float: '0xfff"),
        ("# " + "x" * 2**20, "is longer than 1048576 bytes"),
    ],
)
def test_yaml_is_plain_values_and_nothing_else(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message):
        parse([], yaml_file(tmp_path, text))


TINY = Command()
RUN = flags.CommandLine("pretrain", short=RUN_ALIASES)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        *(("--lr", "--optim.peak-learning-rate"), ("--wd", "--optim.weight-decay")),
        *(("--bs", "--batch-size"), ("--learning-rate", "--optim.peak-learning-rate")),
        *(("--num-layers", "--model.num-layers"), ("--warmup", "--optim.warmup-steps")),
        *(("--batch", "--batch-size"), ("--eval", "--eval-every")),
        *(("--model.lr", "--optim.peak-learning-rate"), ("--stpes", "--steps")),
        *(("--wrokdir", "--workdir"), ("--cache-dir", "--data.cache-dir")),
        *(
            ("--gradient-accumulation-steps", "--optim.accumulation-steps"),
            ("--dtype", "--model.dtype"),
        ),
    ],
)
def test_the_flag_that_is_meant_is_named(flag: str, meant: str):
    with pytest.raises(InputError, match=f"Did you mean '{meant}'") as caught:
        RUN.read(TINY, [flag, "1"])
    assert f"Unknown flag '{flag}'" in str(caught.value)


@pytest.mark.parametrize(
    "flag", ["--epochs", "--gpus", "--xy", "--q", "--output", "--wandb", "--l"]
)
def test_no_flag_is_named_that_is_far_from_what_was_asked(flag: str):
    with pytest.raises(InputError) as caught:
        RUN.read(TINY, [flag, "1"])
    assert "Did you mean" not in str(caught.value)
