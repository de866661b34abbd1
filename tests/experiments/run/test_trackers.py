import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run_config

from experiments.run import trackers
from experiments.run.trackers import Trackers, check_installed, run_id
from polycom_jax._errors import InputError


class Recorder:
    """Keeps what it is given; fails where it is told to."""

    def __init__(self, root: Path, config: Any, step: int, fails: str = "") -> None:
        self.lines: list[Any] = []
        self._fails = fails
        self._meet("start")

    def _meet(self, what: str) -> None:
        if what == self._fails:
            raise ConnectionError("no route\nto it")

    def write(self, step: int, values: Any) -> None:
        self._meet("write")
        self.lines.append((step, dict(values)))

    def flush(self) -> None:
        self._meet("flush")

    def close(self) -> None:
        self._meet("close")
        self.lines.append("closed")

    def drop(self) -> None:
        self.lines.append("dropped")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """The recorders that stand for two trackers; the first fails where `fails` says."""
    found: dict[str, Recorder] = {}

    def maker(name: str):
        def make(root: Path, config: Any, step: int) -> Recorder:
            found[name] = Recorder(root, config, step, fails=config.get(name, ""))
            return found[name]

        return make

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(trackers.TRACKERS, name, maker(name))  # pyright: ignore[reportArgumentType]
    return found


def test_all_get_the_numbers_and_none_gets_what_it_could_not_draw(
    tmp_path: Path, made: dict[str, Recorder]
):
    group = Trackers(["wandb", "trackio"], tmp_path, {}, step=0, warn=pytest.fail)
    group.write(1, {"loss": 2.0, "grad_norm": math.nan, "load": [1.0, 2.0]})
    group.flush()
    group.close()
    for recorder in made.values():
        assert recorder.lines == [(1, {"loss": 2.0}), "closed"]


@pytest.mark.parametrize("fails", ["start", "write", "flush", "close"])
def test_one_that_fails_is_named_once_and_ends_nothing(
    tmp_path: Path, made: dict[str, Recorder], fails: str
):
    said: list[str] = []
    group = Trackers(["wandb", "trackio"], tmp_path, {"wandb": fails}, step=0, warn=said.append)
    for step in (1, 2):
        group.write(step, {"loss": 2.0})
        group.flush()
    group.close()
    assert said == ["warning: tracker wandb failed (no route to it); the run goes on without it"]
    assert made["trackio"].lines == [(1, {"loss": 2.0}), (2, {"loss": 2.0}), "closed"]


def test_one_that_is_not_installed_is_bad_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    check_installed(["tensorboard"])
    with pytest.raises(InputError, match="wandb is not installed; `pip install wandb`"):
        check_installed(["tensorboard", "wandb"])


def test_a_run_has_the_same_name_when_it_goes_on(tmp_path: Path):
    assert run_id(tmp_path) == run_id(tmp_path)
    assert run_id(tmp_path) != run_id(tmp_path / "other")


def test_the_command_line_takes_several_and_none():
    config, _ = run_config(["--run.trackers", "tensorboard", "trackio"])
    assert config.run.trackers == ("tensorboard", "trackio")
    assert run_config([])[0].run.trackers == ("tensorboard",)
    with pytest.raises(InputError, match="mlflow"):
        run_config(["--run.trackers", "mlflow"])


def test_wandb_offline_keeps_the_numbers_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (0, 2):  # begun, then resumed
        group = Trackers(["wandb"], tmp_path, {"seed": 1}, step=step, warn=pytest.fail)
        group.write(step + 1, {"loss": 2.0})
        group.close()
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert folders
    assert all(folder.name.endswith(run_id(tmp_path)) for folder in folders)


def test_trackio_keeps_the_numbers_on_this_machine(tmp_path: Path):
    pytest.importorskip("trackio")
    program = (
        "import sys; from pathlib import Path; from experiments.run.trackers import Trackers\n"
        "root = Path(sys.argv[1])\n"
        "for step in (0, 2):\n"
        "    group = Trackers(['trackio'], root, {'seed': 1}, step=step, warn=sys.exit)\n"
        "    group.write(step + 1, {'loss': 2.0 + step})\n"
        "    group.close()\n"
        "import trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = SQLiteStorage.get_runs('polycom_jax')\n"
        "lines = SQLiteStorage.get_logs('polycom_jax', run)\n"
        "print('found', [(line['step'], line['loss']) for line in lines])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert "found [(1, 2.0), (3, 4.0)]" in found.stdout
