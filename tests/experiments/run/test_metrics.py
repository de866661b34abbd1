"""metrics.jsonl: what it keeps when a run is killed and resumed."""

import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from experiments.run.files import atomic
from experiments.run.metrics import Logs, MetricsFile, cut_short, read_metrics, series
from experiments.run.trackers import Trackers
from polycom_jax import InputError
from polycom_jax.training.checkpoint import SaveError


def trackers(folder: Path, *, step: int = 0) -> Trackers:
    return Trackers(["tensorboard"], folder, {}, step=step, warn=pytest.fail)


def write(path: Path, steps: range, *, step: int = 0) -> None:
    file = MetricsFile(path, step=step)
    for number in steps:
        file.write(number, {"loss": number / 7})
    file.sync()
    file.close()


def test_floats_are_written_in_full(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    values = {"loss": float(np.float32(0.1)), "rate": 1 / 3, "tiny": 5e-324}
    file = MetricsFile(path, step=0)
    file.write(1, values)
    file.close()
    assert read_metrics(path) == [{"step": 1, **values}]


def test_resuming_cuts_lines_behind_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    write(path, range(4, 8), step=3)
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 5, 6, 7]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_disk_that_is_full_is_told_with_the_file_that_did_not_fit(tmp_path: Path):
    path, name = tmp_path / "metrics.jsonl", tmp_path / "config.yaml"
    file = MetricsFile(path, step=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a full disk
    try:
        with pytest.raises(OSError, match=re.escape(str(path))):
            file.write(1, {"loss": [1.0] * 1000})
        with pytest.raises(OSError, match=re.escape(str(path))):
            file.close()  # what did not fit is tried again
        with pytest.raises(OSError, match=re.escape(str(name))), atomic(name) as temporary:
            temporary.write_text("x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_starting_anew_empties_the_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    MetricsFile(path, step=0).close()
    assert read_metrics(path) == []


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "{", '{"step"'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    with path.open("a") as file:
        file.write(torn)
    assert [r["step"] for r in read_metrics(path)] == [1, 2]
    write(path, range(3, 4), step=5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_what_is_no_number_is_null(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, step=0)
    file.write(1, {"loss": float("nan"), "load": [1.0, float("inf")]})
    file.close()
    assert path.read_text() == '{"step": 1, "loss": null, "load": [1.0, null]}\n'


def test_a_series_has_zeros_and_leaves_out_what_is_no_number_or_not_there():
    records = [{"step": 1, "loss": 0.0}, {"step": 2, "loss": None}, {"step": 3}]
    assert series([*records, {"step": 4, "loss": 2.0}], "loss") == ([1, 4], [0.0, 2.0])


def test_an_evaluation_that_comes_later_joins_the_line_of_its_step(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 5))
    assert cut_short(path, 3) == {"step": 3, "loss": 3 / 7}
    logs = Logs(path, trackers(tmp_path, step=3), step=3)
    logs.amend({"step": 3, "loss": 3 / 7, "heldout_loss": 2.5})
    logs.write(4, {"loss": 4 / 7})
    logs.close()
    records = read_metrics(path)
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert records[2] == {"step": 3, "loss": 3 / 7, "heldout_loss": 2.5}
    assert cut_short(path, 3) is None
    assert cut_short(path, 5) is None


@pytest.mark.parametrize("line", ["broken", '{"step": "2"}', '{"step": null}'])
def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(InputError, match="line 2 is not a JSON object with a step"):
        read_metrics(path)


def test_logs_write_both_kinds_of_files(tmp_path: Path):
    logs = Logs(tmp_path / "metrics.jsonl", trackers(tmp_path), step=0)
    logs.write(1, {"loss": 2.0})
    logs.sync()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    assert list((tmp_path / "tensorboard").glob("*tfevents*"))
    logs.close()


def test_logs_of_other_processes_write_nothing(tmp_path: Path):
    logs = Logs(tmp_path / "metrics.jsonl", None, step=0)
    logs.write(1, {"loss": 2.0})
    logs.sync()
    logs.close()
    assert list(tmp_path.iterdir()) == []


def test_behind_an_error_of_the_system_that_one_is_told_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A server that is gone would not take the rest either, and be waited for once more."""

    class Hold:
        def check(self) -> None: ...

        def confirm(self) -> None:
            raise OSError("the second")

    for first in (OSError("the first"), SaveError("the first")):
        logs = Logs(tmp_path / "metrics.jsonl", trackers(tmp_path), step=0, hold=Hold())
        with pytest.raises(type(first), match="the first"), logs:
            raise first
    logs = Logs(tmp_path / "metrics.jsonl", trackers(tmp_path), step=0, hold=Hold())
    with pytest.raises(OSError, match="the second"), logs:
        pass
