"""Runs in a bucket whose process is killed, or whose server is away, gone, or behind the time."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import buckets
import pytest
from commands import numbers

from polycom_jax import storage
from polycom_jax.training import latest_step

pytestmark = pytest.mark.slow  # real runs

ROOT = Path(__file__).resolve().parents[2]


def program(settings: Path, workdir: str) -> subprocess.Popen[str]:
    """A run of 20 steps as a process of its own."""
    command = [sys.executable, "-m", "experiments.pretrain", "--config", str(settings)]
    length = ["--steps", "20", "--eval-every", "10", "--checkpoint-every", "3"]
    return subprocess.Popen(
        [*command, "--workdir", workdir, *length],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def longer(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run on a disk."""
    workdir = tmp_path_factory.mktemp("longer")
    process = program(settings, str(workdir))
    _, said = process.communicate()
    assert process.returncode == 0, said
    return workdir


def test_a_killed_run_goes_on_at_once_and_ends_as_one_that_was_not(
    settings: Path, longer: Path, bucket: str
):
    workdir = f"{bucket}/run"
    process = program(settings, workdir)
    wait_for(lambda: latest_step(f"{workdir}/checkpoints") is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert storage.is_file(storage.place(f"{workdir}/.lock"))  # its lease is there still
    process = program(settings, workdir)
    told, said = process.communicate()
    assert process.returncode == 0, said
    assert "resumed from the checkpoint of step" in told
    assert "waiting" not in told  # on this machine the lock of the system tells
    assert numbers(workdir) == numbers(longer)


def test_a_server_that_is_away_for_ten_seconds_is_waited_for(
    settings: Path, longer: Path, bucket: str, front: buckets.Front
):
    workdir = f"{bucket}/run"
    process = program(settings, workdir)
    wait_for(lambda: latest_step(f"{workdir}/checkpoints") is not None)
    front.refuse_for(10)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert len(front.refused) > 0
    assert numbers(workdir) == numbers(longer)


def lines(said: str) -> list[str]:
    """What a program has said, without what TensorStore says of an emulator's credentials."""
    return [line for line in said.splitlines() if not re.match(r"I\d+ .*google_auth", line)]


BOUND_S = 300
"""A run whose server is gone ends long before that; left to itself, TensorStore asks for longer."""


def test_a_server_that_is_gone_amid_a_save_ends_the_run_in_one_line(
    settings: Path, longer: Path, bucket: str, front: buckets.Front
):
    workdir = f"{bucket}/run"
    front.gone_at = "checkpoints/9/state/ocdbt.process_0/d/"
    process = program(settings, workdir)
    _, said = process.communicate(timeout=BOUND_S)
    assert front.gone
    assert process.returncode == 1, said
    (line,) = lines(said)
    assert line.startswith(f"error: The checkpoint of step 9 could not be saved in {workdir}/check")
    assert line.endswith("Those before it are as they were.")

    front.gone = False
    assert latest_step(f"{workdir}/checkpoints") == 6
    process = program(settings, workdir)
    told, said = process.communicate()
    assert (process.returncode, lines(said)) == (0, [])
    assert "resumed from the checkpoint of step 6" in told
    assert numbers(workdir) == numbers(longer)


def test_a_server_that_is_gone_amid_a_restore_ends_the_run_and_nothing_is_passed_over(
    settings: Path, longer: Path, bucket: str, front: buckets.Front
):
    workdir = f"{bucket}/run"
    process = program(settings, workdir)
    wait_for(lambda: (latest_step(f"{workdir}/checkpoints") or 0) >= 6)
    process.kill()
    process.communicate()
    step = latest_step(f"{workdir}/checkpoints")
    before = storage.entries(storage.place(f"{workdir}/checkpoints"))

    front.gone_at = f"checkpoints/{step}/state/manifest.ocdbt"
    process = program(settings, workdir)
    _, said = process.communicate(timeout=BOUND_S)
    assert front.gone
    assert process.returncode == 1, said
    (line,) = lines(said)
    assert line.startswith(f"error: {workdir}/checkpoints cannot be listed: the bucket's server do")

    front.gone = False
    assert storage.entries(storage.place(f"{workdir}/checkpoints")) == before
    process = program(settings, workdir)
    told, said = process.communicate()
    assert (process.returncode, lines(said)) == (0, [])
    assert f"resumed from the checkpoint of step {step}" in told
    assert numbers(workdir) == numbers(longer)


def test_a_listing_that_stays_behind_hides_no_checkpoint_from_who_goes_on(
    settings: Path, longer: Path, bucket: str, front: buckets.Front
):
    workdir = f"{bucket}/run"
    process = program(settings, workdir)
    wait_for(lambda: latest_step(f"{workdir}/checkpoints") is not None)
    front.freeze()  # no listing shows what comes from here on
    last = storage.place(f"{workdir}/checkpoints/15/commit_success.txt")
    wait_for(lambda: storage.is_file(last))
    process.kill()
    process.communicate()
    assert "15" not in storage.folders(storage.place(f"{workdir}/checkpoints"))
    process = program(settings, workdir)
    told, said = process.communicate()
    assert process.returncode == 0, said
    assert re.search(r"resumed from the checkpoint of step (15|18|20)\n", told)
    assert numbers(workdir) == numbers(longer)
    front.stale.clear()
    assert latest_step(f"{workdir}/checkpoints") == 20
