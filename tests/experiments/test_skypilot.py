"""Files for SkyPilot, as far as its own reader checks them without a cloud."""

from pathlib import Path

import pytest
import yaml
from commands import run_config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tpu_configs" / "skypilot").glob("*.yaml"))


def command_of(task: dict) -> list[str]:
    """The words of the command that a task runs."""
    return task["run"].replace("\\\n", " ").replace("$BUCKET", "gs://bucket").split()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_starts_the_run_of_its_name_on_the_slice_of_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    task = yaml.safe_load(path.read_text())
    words = command_of(task)
    assert words[:3] == ["python", "-m", "experiments.pretrain"]
    config, _ = run_config(words[3:])
    assert words[words.index("--config") + 1] == f"tpu_configs/{path.name}"
    assert config.workdir == f"gs://bucket/runs/{path.stem}"
    slice_name, chips = path.stem.split("-")[:2]
    assert str(config.run.hardware).startswith(slice_name)
    assert task["resources"]["accelerators"] == f"tpu-v5litepod-{chips}"
    assert task["resources"]["use_spot"] is True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_skypilot_takes_it(path: Path):
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml_config(yaml.safe_load(path.read_text()), {"BUCKET": "gs://bucket"})
    assert {str(one.accelerators) for one in task.resources} == {"{'tpu-v5litepod-16': 1}"}
