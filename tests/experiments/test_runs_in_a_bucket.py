"""Runs whose folder is in a bucket: the same numbers as on a disk, damage, two at once."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import buckets
import pytest
from commands import numbers
from ocdbt import largest_that_is_read

from experiments import generate, replay
from experiments.analyze import __main__ as analyze
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.pretrain import __main__ as pretrain
from experiments.run.step_metrics import Meter
from polycom_jax import _lease, storage
from polycom_jax.training import latest_step
from polycom_jax.training.checkpoint import CheckpointWarning
from polycom_jax.training.in_bucket import SET_ASIDE

pytestmark = pytest.mark.slow  # real runs

FILES = {
    *("config.yaml", "tokenizer.json", "metrics.jsonl", "sample.txt"),
    *("plots/loss.png", "plots/loss.pdf", "plots/activations.png", "plots/activations.pdf"),
}
Run = Callable[..., int]


@pytest.fixture(autouse=True)
def no_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program makes a local folder of a URI."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.glob("gs:*"))


@pytest.fixture(scope="module")
def finished(run: Run, server: buckets.Server) -> str:
    """The place of a run in a bucket that nothing disturbed."""
    workdir = f"{server.bucket()}/runs/whole"
    assert run(workdir, "--run.keep-last", "3") == 0
    return workdir


def copied(finished: str, bucket: str) -> str:
    """The same run in a bucket of its own, which a test may harm."""
    source, target = storage.place(finished), storage.place(f"{bucket}/run")
    for name in storage.entries(source):
        storage.write(target / name, storage.read(source / name))
    return str(target)


def begun(finished: str, bucket: str) -> str:
    """The run as a kill behind step 4 leaves it: checkpoint 6 was never finished."""
    workdir = copied(finished, bucket)
    storage.remove(storage.place(f"{workdir}/checkpoints/6/commit_success.txt"))
    return workdir


def test_a_run_in_a_bucket_has_the_numbers_and_files_of_one_on_a_disk(finished: str, whole: Path):
    assert numbers(finished) == numbers(whole)
    names = set(storage.entries(storage.place(finished)))
    assert names >= FILES
    assert any(name.startswith("tensorboard/events") for name in names)
    assert ".lock" not in names
    assert latest_step(f"{finished}/checkpoints") == 6
    sample = storage.read(storage.place(finished) / "sample.txt")
    assert sample == (whole / "sample.txt").read_bytes()


def test_the_same_command_says_that_it_is_finished(
    run: Run, finished: str, capsys: pytest.CaptureFixture[str]
):
    before = storage.entries(storage.place(finished))
    assert run(finished) == 0
    assert f"Finished: {finished} has 6 steps" in capsys.readouterr().out
    assert pretrain.main([finished]) == 0
    assert storage.entries(storage.place(finished)) == before


def test_programs_read_a_run_in_a_bucket_as_they_read_it_on_a_disk(
    finished: str, whole: Path, tmp_path: Path, settings: Path
):
    text, found = str(settings.with_name("little.txt")), dict[str, list[Any]]()
    for run in (finished, str(whole)):
        out = tmp_path / "out.json"
        for name, program, words in (
            ("generate", generate, ["--max-new-tokens", "5", "--checkpoint", "best"]),
            ("evaluate", evaluate, ["--data", text]),
            ("replay", replay, ["--step", "3"]),
        ):
            assert program.main([run, *words, "--json", str(out)]) == 0
            numbers = json.loads(out.read_text())
            for own in ("run", "config"):
                numbers.pop(own, None)
            found.setdefault(name, []).append(numbers)
    for name, (one, other) in found.items():
        assert one == other, name


def test_a_report_and_an_exported_folder_go_to_a_bucket_and_are_read_there(
    finished: str, whole: Path, bucket: str, settings: Path, tmp_path: Path
):
    out, hf, again = (f"{bucket}/{name}" for name in ("report", "hf", "again"))
    assert analyze.main([finished, "--tokens", "64", "--untrained", "False", "--out", out]) == 0
    names = set(storage.entries(storage.place(out)))
    assert names >= {"report.md", "results.json"}
    assert any(name.startswith("plots/") for name in names)

    assert convert.main([finished, "--out", hf]) == 0
    assert convert.main([str(whole), "--out", str(tmp_path / "hf")]) == 0
    exported = storage.entries(storage.place(hf))
    assert set(exported) == set(storage.entries(tmp_path / "hf"))
    for name in exported:
        assert storage.read(storage.place(hf) / name) == (tmp_path / "hf" / name).read_bytes()

    text = str(settings.with_name("little.txt"))
    words = ["--data", text, "--data.document-bytes", "2000"]
    assert convert.main([hf, "--workdir", again, *words]) == 0
    assert latest_step(f"{again}/checkpoints") == 0
    assert generate.main([again, "--max-new-tokens", "3"]) == 0
    assert generate.main([again, "--max-new-tokens", "3", "--checkpoint", "0"]) == 0


def test_a_run_that_was_cut_short_goes_on_bit_for_bit(
    run: Run, finished: str, bucket: str, whole: Path
):
    workdir = begun(finished, bucket)
    assert latest_step(f"{workdir}/checkpoints") == 4
    assert run(workdir) == 0
    assert numbers(workdir) == numbers(whole)
    assert latest_step(f"{workdir}/checkpoints") == 6


@pytest.mark.parametrize("harm", ["missing", "flipped", "metadata"])
def test_a_torn_checkpoint_is_passed_over_and_set_aside_by_a_mark(
    run: Run, finished: str, bucket: str, whole: Path, harm: str
):
    workdir = copied(finished, bucket)
    place, middle = largest_that_is_read(storage.place(f"{workdir}/checkpoints/6/state"))
    if harm == "missing":
        storage.remove(place)
    elif harm == "flipped":
        data = bytearray(storage.read(place))
        data[middle] ^= 1
        storage.write(place, bytes(data))
    else:
        storage.write(storage.place(f"{workdir}/checkpoints/6/state/_METADATA"), b"{")
    storage.remove(storage.place(f"{workdir}/sample.txt"))
    before = storage.entries(storage.place(f"{workdir}/checkpoints/6"))
    with pytest.warns(CheckpointWarning, match="checkpoints/6 is damaged"):
        assert run(workdir, "--steps", "8") == 0
    after = storage.entries(storage.place(f"{workdir}/checkpoints/6"))
    assert after.pop(SET_ASIDE).size > 0
    assert after == before  # not an object was copied, or written
    assert numbers(workdir)[:5] == numbers(whole)[:5]
    assert latest_step(f"{workdir}/checkpoints") == 8
    assert storage.is_file(storage.place(f"{workdir}/checkpoints/6.1/commit_success.txt"))


def test_a_second_run_is_refused_while_the_first_one_lives(
    run: Run, finished: str, bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
):
    workdir = copied(finished, bucket)
    monkeypatch.setattr(_lease, "BEAT_S", 0.2)
    monkeypatch.setattr(_lease, "POLL_S", 0.1)
    place = f"{workdir}/.lock"
    with _lease.Lease(place, {"process": 7, "host": "elsewhere", "machine": "other"}):
        assert run(workdir, "--steps", "8") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"Another run is writing to {workdir}: the run of process 7 on elsewhere." in said
    assert latest_step(f"{workdir}/checkpoints") == 6


def test_a_run_that_has_lost_its_lease_ends_and_saves_no_more(
    run: Run, settings: Path, bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
):
    workdir = f"{bucket}/run"
    monkeypatch.setattr(_lease, "BEAT_S", 0.05)
    steps = Meter.push

    def push(self: Any, step: int, metrics: Any) -> None:
        if step == 4:  # another one takes the folder, as if this process had stood still
            other = {"process": 7, "host": "elsewhere"}
            storage.write(storage.place(f"{workdir}/.lock"), json.dumps(other).encode())
            deadline = time.monotonic() + 10
            while threading.active_count() and time.monotonic() < deadline:
                if not any(thread.name == "lease" for thread in threading.enumerate()):
                    break
                time.sleep(0.02)
        steps(self, step, metrics)

    monkeypatch.setattr(Meter, "push", push)
    assert run(workdir) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{workdir}/.lock is no longer this process's (taken by process 7, host else" in said
    assert latest_step(f"{workdir}/checkpoints") == 2
    assert b"elsewhere" in storage.read(storage.place(f"{workdir}/.lock"))
