"""Paths that programs are given: `~` in every one of them, and outputs tried before the work."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from commands import run_config

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
from experiments.plan import __main__ as plan
from experiments.pretrain import __main__ as pretrain
from experiments.sobolev import __main__ as sobolev
from experiments.terminal import flags
from experiments.terminal.paths import expanded, is_path, is_place, try_file, try_folder
from polycom_jax import InputError

CONFIGS: dict[str, Any] = {
    "pretrain": pretrain.PretrainCommand(),
    "convert": convert.ConvertCommand(),
    "plan": plan.PlanCommand(),
    "generate": generate.GenerateConfig(),
    "evaluate": evaluate.EvaluateConfig(),
    "analyze": analyze.AnalyzeConfig(data="stdlib"),
    "replay": replay.ReplayConfig(),
    "benchmark": Options(),
    "compare": SCALES["cpu"],
    "faults": faults.FaultsCommand(),
    **{f"sobolev {name}": study.default for name, study in sobolev.STUDIES.items()},
}

NO_PATHS = frozenset(
    {
        *("preset", "study", "scale", "model", "arms", "suites", "peers", "activations"),
        *(
            "shapes",
            "chips",
            "gpus",
            "parts",
            "checkpoint",
            "prompt",
            "sample_prompt",
            "implementation",
        ),
        *("activation", "text_field", "train_split", "hardware", "compiler_options"),
        *("steps", "coordinator", "target", "targets", "selection", "passes", "end_of_text"),
        *("profile_steps", "recipe", "products"),
    }
)
"""Names of the fields of text that take no path."""


def paths_of(config: Any) -> set[str]:
    """The dotted names of all fields that take a path."""
    return {name for name, leaf in flags.leaves(config).items() if is_path(leaf.hint)}


def texts(config: Any) -> set[str]:
    """The dotted names of all fields that take text."""
    hints = {name: plain(leaf.hint) for name, leaf in flags.leaves(config).items()}
    return {name for name, hint in hints.items() if str in (hint, *map(plain, get_args(hint)))}


def plain(hint: Any) -> Any:
    """An annotation without its markers."""
    return get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


@pytest.mark.parametrize("program", CONFIGS)
def test_every_field_of_text_is_a_path_or_known_to_be_none(program: str):
    config = CONFIGS[program]
    paths = paths_of(config)
    if program.startswith("sobolev"):
        # Of a study's own class the one path is the file that its runs are paired with.
        assert paths - {"beside"} == {"out", "json"}
    else:
        assert {n for n in texts(config) if n.rpartition(".")[2] not in NO_PATHS} == paths
    assert paths


@pytest.mark.parametrize("program", CONFIGS)
def test_the_home_folder_is_meant_by_a_tilde_in_every_path(
    program: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/somebody's home")
    config = CONFIGS[program]
    names = sorted(paths_of(config))
    settings = [flags.Setting(name, (f"~/{name}",)) for name in names]
    found = flags.flatten(flags.CommandLine().parse(config, settings))
    for name in names:
        path = f"/somebody's home/{name}"
        assert found[name] == ((path,) if isinstance(found[name], tuple) else path)


@pytest.mark.parametrize("program", CONFIGS)
@pytest.mark.parametrize("word", ["gs://bucket/x", "s3://bucket/x", "gs:/bucket/x"])
def test_a_uri_is_never_a_local_path(
    program: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A flag takes a place in a bucket and says so by its type, or refuses it in a line."""
    monkeypatch.chdir(tmp_path)
    config = CONFIGS[program]
    leaves = flags.leaves(config)
    places = {name for name in paths_of(config) if is_place(leaves[name].hint)}
    taken = places if word.startswith("gs://") else set()
    words = {
        name: f"{word}/{name}" if name in taken else f"x-{name}"
        for name in sorted(paths_of(config))
    }
    settings = [flags.Setting(name, (one,)) for name, one in words.items()]
    found = flags.flatten(flags.CommandLine().parse(config, settings))
    for name, one in words.items():
        assert found[name] in (one, (one,))
    for name in words.keys() - taken:
        with pytest.raises(InputError, match=r"gs://BUCKET|takes a local path"):
            flags.CommandLine().parse(config, [flags.Setting(name, (word,))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", CONFIGS)
def test_folders_of_runs_may_be_in_a_bucket(program: str):
    leaves = flags.leaves(CONFIGS[program])
    runs = {name for name in leaves if name.rpartition(".")[2] in ("workdir", "run", "runs")}
    runs |= {name for name in ("resume", "source") if name in leaves}
    assert {name for name in runs if not is_place(leaves[name].hint)} == set()


def test_a_file_s_paths_and_the_file_itself_may_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "workdir: ~/runs\ndata: {source: ~/a.txt, tokenizer: '~/t.json', cache_dir: ~}\n"
    (tmp_path / "c.yaml").write_text(text)
    for words in (["--config=~/c.yaml"], ["--config", "~/c.yaml"]):
        config, _ = run_config(words)
        assert config.workdir == str(tmp_path / "runs")
        assert (config.data.source, config.data.tokenizer) == (
            str(tmp_path / "a.txt"),
            str(tmp_path / "t.json"),
        )
        assert config.data.cache_dir is None  # what a bare ~ is in YAML


def test_flags_that_are_a_program_s_own_take_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[Any] = []

    def stop(*given: Any) -> None:
        seen.append(given)
        raise InputError("enough")

    monkeypatch.setattr(convert, "check_command", stop)
    for words in (["~/a", "--out", "~/b"], ["--source=~/a", "--target=~/b"]):
        assert convert.main(words) == 2
        command = seen.pop()[0]
        assert (command.source, command.out) == (f"{tmp_path}/a", f"{tmp_path}/b")
    monkeypatch.setattr(plan, "try_json", stop)
    assert plan.main(["--json=~/plan.json"]) == 2
    assert seen.pop() == (f"{tmp_path}/plan.json",)


@pytest.mark.parametrize("word", ["~nobody-of-this-name/x", "~$letter.docx", "~\0", "~\udcff/x"])
def test_the_home_of_nobody_is_refused(word: str):
    with pytest.raises(InputError, match=r"^--data=.*nobody's home folder is '~.*write \./~\.$"):
        expanded("--data", word)


@pytest.mark.parametrize("word", ["a/~", "./~", "bpe", "", "c4/en", "-"])
def test_other_words_are_left_as_they_are(word: str):
    assert expanded("--data", word) == word


def test_trying_leaves_no_trace(tmp_path: Path):
    (tmp_path / "there.json").write_text("old")
    try_folder("--out", tmp_path / "a" / "b")
    try_file("--json", tmp_path / "c" / "d.json")
    try_file("--json", tmp_path / "there.json")
    try_file("--json", Path(os.devnull))
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "old"


def test_two_programs_that_begin_at_once_may_try_the_same_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = tempfile.TemporaryFile

    def meanwhile(*, dir: Path) -> Any:
        monkeypatch.setattr(tempfile, "TemporaryFile", real)
        dir.rmdir()  # the other one has made it, and is done
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", meanwhile)
    try_folder("--out", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


NOWHERE = ("FILE/x", "/proc/none/x", "/dev/null/x", "x" * 300, "FOLDER/" + "y" * 300 + "/z")


@pytest.mark.parametrize("name", [*NOWHERE, "FILE"])
def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, name: str):
    check(try_folder, tmp_path, name)


@pytest.mark.parametrize("name", [*NOWHERE, "FOLDER"])
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, name: str):
    check(try_file, tmp_path, name)


def check(tried: Callable[[str, Path], None], tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    path = Path(name.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path)))
    with pytest.raises(InputError, match=r"^--flag '.*") as caught:
        tried("--flag", path)
    assert str(path) in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["FILE", "FILE/x", "/proc/none/x"])
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (pretrain.main, ["--workdir"]),
        (evaluate.main, ["--json"]),
        (analyze.main, ["--out"]),
        (benchmark.main, ["--out"]),
        (compare.main, ["activations", "--quick", "--out"]),
        (convert.main, ["absent", "--out"]),
        (convert.main, ["absent", "--workdir"]),
        (faults.main, ["--out"]),
        (plan.main, ["--topology", "v5e:2x2", "--json"]),
        (sobolev.main, ["rates", "--quick", "--out"]),
        (sobolev.main, ["imitate", "--quick", "--out"]),
    ],
)
def test_outputs_are_tried_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: Callable[..., int],
    words: list[str],
    name: str,
):
    work = [(evaluate, "make_mesh"), (analyze, "open_model"), (benchmark, "run")]
    work += [(comparing, "Comparing"), (convert, "mesh_of"), (faults, "KillTest")]
    work += [(plan, "find_slice"), (pretrain, "train")]
    for module, reached in work:
        monkeypatch.setattr(module, reached, None)  # a call would fail
    monkeypatch.setattr("experiments.sobolev.rates_program.rates", None)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("in the way")
    if name == "FILE" and words[-1] == "--json":
        file.unlink()
        file.mkdir()
    path = name.replace("FILE", str(file))
    assert program([*words, path]) == 2
    error = capsys.readouterr().err
    assert words[-1] in error
    assert path in error
    assert error.count("\n") == 1
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["plots", "checkpoints", "tensorboard"])
def test_a_file_where_a_run_wants_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
):
    monkeypatch.setattr(pretrain, "train", None)
    (tmp_path / name).write_text("in the way")
    assert pretrain.main(["--workdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / name} is a file, and a folder is wanted" in error
    assert error.count("\n") == 1
