"""The notebooks' first cell: finds or clones the project, and installs it from there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from experiments.notebooks import execute, runtime

ROOT = Path(__file__).resolve().parents[2]
CELL = "".join(execute.code_cells(execute.read(execute.HERE / "pretrain.ipynb"))[0]["source"])
STAND_IN = "def install(clone):\n    print('found', clone)\n"


def run(cell: str, folder: Path, *, python: str = sys.executable, **env: str):
    """The cell in a process of its own, in that folder, to which nothing names the project."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [python, "-c", cell], cwd=folder, env=kept | env, capture_output=True, text=True
    )


def with_address(address: str) -> str:
    cell, count = execute._ADDRESS.subn(f'REPOSITORY = "{address}"', CELL)
    assert count == 1
    return cell


def stand_in(folder: Path) -> Path:
    """A folder that looks like a clone."""
    file = folder / "experiments" / "notebooks" / "runtime.py"
    file.parent.mkdir(parents=True)
    file.write_text(STAND_IN)
    return folder


@pytest.mark.parametrize(
    ("place", "opened_in"),
    [
        ("polycom", "."),  # an earlier kernel cloned it
        ("some-name-main", "."),  # an uploaded folder
        ("drive/MyDrive/projects", "."),  # a mounted drive
        ("drive/MyDrive/My projects/it", "."),
        ("clone", "clone/experiments/notebooks"),  # Jupyter beside the notebook
    ],
)
def test_a_clone_that_is_there_needs_no_address(place: str, opened_in: str, tmp_path: Path):
    clone = stand_in(tmp_path / place)
    done = run(CELL, tmp_path / opened_in)
    assert (done.returncode, done.stdout) == (0, f"found {clone}\n"), done.stderr


def test_a_missing_or_wrong_address_is_one_line_that_names_the_field(tmp_path: Path):
    done = run(CELL, tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "fill in REPOSITORY, in this cell" in done.stderr
    done = run(with_address(f"file://{tmp_path}/nothing"), tmp_path)
    assert done.returncode == 1
    assert "REPOSITORY = 'file://" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def fresh_python(folder: Path) -> str:
    """Of an environment that has all that the project needs, and not the project."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            own = entry.name.lower().startswith(("polycom_jax", "__editable__", "__pycache__"))
            if not own and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="clones the checkout, and this is none")
def test_the_cell_clones_and_installs_in_a_fresh_environment(tmp_path: Path):
    pytest.importorskip("setuptools", "77", reason="builds without a download")
    bare, there = tmp_path / "published.git", tmp_path / "content"
    there.mkdir()
    subprocess.run(["git", "clone", "-q", "--bare", str(ROOT), str(bare)], check=True)
    python = fresh_python(tmp_path / "fresh")
    where = "\nimport polycom_jax, experiments\nprint(polycom_jax.__file__, experiments.__file__)\n"
    # No download: every requirement is there, and the build needs no environment of its own.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    done = run(with_address(bare.as_uri()) + where, there, python=python, **offline)
    assert done.returncode == 0, done.stderr
    clone = there / "polycom"
    assert f"{clone}/polycom_jax/__init__.py {clone}/experiments/__init__.py" in done.stdout
    assert "fits and stays" in done.stdout
    # It is installed, for other processes too, and the cell of a restarted kernel does nothing.
    assert run("import polycom_jax", tmp_path, python=python).returncode == 0
    again = run(CELL, there, python=python, PIP_NO_INDEX="1")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == done.stdout.splitlines()[1:2]


# The JAX that a runtime has

WANTED = ["jax>=0.10.1", "jaxlib>=0.10.1"]
HAVE = {"jax": "0.10.1", "jaxlib": "0.10.1"}


def test_a_jax_that_fits_stays_as_it_is():
    seen: list[tuple[runtime.Accelerator, str]] = [
        ("cuda", "jax-cuda12-plugin"),
        ("cuda", "jax-cuda13-plugin"),
        ("tpu", "libtpu"),
    ]
    for device, plugin in seen:
        choice = runtime.choose(device, True, WANTED, {**HAVE, plugin: "1"})
        assert choice.extras == ("experiments",)
        assert choice.pins == ("jax==0.10.1", "jaxlib==0.10.1")
        assert "JAX 0.10.1 fits and stays" in choice.why
    assert runtime.choose("", True, WANTED, HAVE).extras == ("experiments",)


def test_a_jax_that_does_not_see_the_accelerator_gets_its_part_and_stays():
    blind: list[tuple[runtime.Accelerator, str]] = [("cuda", "cuda12"), ("tpu", "tpu")]
    for device, extra in blind:
        choice = runtime.choose(device, True, WANTED, HAVE)
        assert choice.extras == ("experiments", extra)
        assert choice.pins == ("jax==0.10.1", "jaxlib==0.10.1")


def test_a_jax_that_does_not_fit_is_told_and_replaced():
    old = {"jax": "0.7.2", "jaxlib": "0.7.2"}
    choice = runtime.choose("cuda", False, WANTED, {**old, "jax-cuda13-plugin": "0.7.2"})
    assert choice.extras == ("experiments", "cuda13")
    assert choice.pins == ()
    assert choice.why == (
        "Here is JAX 0.7.2; the project needs jax>=0.10.1, jaxlib>=0.10.1: installing that for"
        " cuda13."
    )
    assert runtime.choose("tpu", False, WANTED, {}).extras == ("experiments", "tpu")
    assert "Here is no JAX" in runtime.choose("", False, WANTED, {}).why


def test_requirements_are_the_projects_own():
    found = {need.name: need for need in runtime.requirements(ROOT)}
    assert {"jax", "flax", "grain", "safetensors"} <= found.keys()  # safetensors: an extra's extra
    assert not any(name.startswith("polycom") for name in found)
    assert found["jax"].specifier.contains("0.10.1")
    assert not found["jax"].specifier.contains("0.7.2")
    assert runtime.is_met(found["numpy"])
    assert not runtime.is_met(runtime.Requirement("numpy>=999"))
    assert not runtime.is_met(runtime.Requirement("no-such-distribution"))


def test_pip_is_given_the_path_and_never_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[list[str]] = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        said.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no space left")

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(
        runtime, "installed", lambda names: {n: HAVE[n] for n in names if n in HAVE}
    )
    monkeypatch.setattr(runtime, "loaded", lambda: [])
    monkeypatch.setattr(runtime, "accelerator", lambda: "")
    with pytest.raises(SystemExit, match="pip could not install"):
        runtime.install(tmp_path)
    (command,) = said
    assert command[:5] == [sys.executable, "-m", "pip", "install", "-q"]
    assert command[5:] == ["-e", f"{tmp_path}[experiments]", "jax==0.10.1", "jaxlib==0.10.1"]


def test_what_was_replaced_beneath_the_runtime_asks_for_a_restart():
    runtime._check_loaded({"numpy": "2.0", "rich": "14"}, {"numpy": "2.0", "rich": "14"})
    with pytest.raises(SystemExit, match=r"numpy 1\.26 -> 2\.3; restart the runtime"):
        runtime._check_loaded({"numpy": "1.26", "rich": "14"}, {"numpy": "2.3", "rich": "14"})
    assert {"numpy", "jax"} <= set(runtime.loaded())


@pytest.mark.parametrize("inside", [True, False])
def test_commands_work_from_where_the_notebook_is(
    inside: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    clone = tmp_path / "a clone"
    clone.mkdir()
    monkeypatch.chdir(clone if inside else tmp_path)
    monkeypatch.setattr(runtime.shutil, "which", lambda name: sys.executable)
    runtime.show_next(clone, ("generate", "--workdir", Path("runs/it's"), "--prompt", "def "))
    line = capsys.readouterr().out.splitlines()[1].strip()
    where = "runs/it" if inside else f"{tmp_path}/runs/it"
    command = f"""python -m experiments.generate --workdir '{where}'"'"'s' --prompt 'def '"""
    assert line == (command if inside else f"cd '{clone}' && {command}")
