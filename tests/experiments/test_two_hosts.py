"""`experiments.pretrain` in two processes with four devices each: as in one with eight."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from experiments.faults.compare import differences
from experiments.pretrain import __main__ as pretrain
from experiments.run.metrics import read_metrics
from polycom_jax.training import latest_step

ROOT = Path(__file__).resolve().parents[2]
# Parameters and optimiser are split over both processes.
SPLIT = ["--mesh.data", "1", "--mesh.fsdp", "8"]
OTHER = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
COMPARED = ("loss", "grad_norm", "heldout_loss", "bits_per_byte")
Processes = list[subprocess.Popen[str]]
PLAIN = ("-m", "experiments.pretrain")
# The last process has to compile what the first one finds in its cache.
LATE = """
import sys, time
from experiments.pretrain import __main__ as pretrain
from polycom_jax.data import Mixture
honest = loop.compile_step
def late(*args):
    if sys.argv[-1] == "1":
        time.sleep(45)
    return honest(*args)
loop.compile_step = late
sys.exit(pretrain.main())
"""

# The last process finds its disk full.
FULL = """
import errno, os, sys
from experiments.pretrain import __main__ as pretrain
from polycom_jax.data import Mixture
def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
if sys.argv[-1] == "1":
    Mixture.train_batches = full
sys.exit(pretrain.main())
"""


@contextlib.contextmanager
def two_processes(
    settings: Path,
    workdir: Path,
    *words: str,
    program: tuple[str, ...] = PLAIN,
    other: Path | None = None,
) -> Iterator[Processes]:
    """The program in two processes; the last one's workdir is `other`, if that is given."""
    command = [sys.executable, *program, "--config", str(settings)]
    coordinator = f"localhost:{free_port()}"
    place = ["--hosts.coordinator", coordinator, "--hosts.count", "2", "--hosts.index"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    started = [
        subprocess.Popen(
            [*command, "--workdir", str(folder), *words, *place, index],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index, folder in (("0", workdir), ("1", other or workdir))
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def end(processes: Processes) -> list[tuple[int, list[str]]]:
    """Exit code and lines on stderr of each; what XLA says of its cache is none of ours."""
    ended = [(p.communicate(timeout=240)[1], p.returncode) for p in processes]
    return [
        (code, [line for line in err.splitlines() if line and "cpu_aot_loader" not in line])
        for err, code in ended
    ]


def one_process(settings: Path, workdir: Path, *words: str) -> None:
    command = ["--config", str(settings), "--workdir", str(workdir), *words]
    assert pretrain.main(command) == 0


def numbers(workdir: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was logged."""
    return {record["step"]: record for record in read_metrics(workdir / "metrics.jsonl")}


def assert_close(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for name in COMPARED:
        assert (name in one) == (name in other)
        if name in one:
            # Sums of float32 in another order: some units in the last place, and what a few steps
            # of training make of them.
            assert one[name] == pytest.approx(other[name], rel=1e-5)


def files(workdir: Path) -> set[str]:
    return {path.name for path in workdir.iterdir()} | {p.name for p in workdir.glob("plots/*")}


@pytest.fixture(scope="module")
def trained(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same run by "one" process and by "two"."""
    root = tmp_path_factory.mktemp("trained")
    with two_processes(settings, root / "two", *SPLIT) as processes:
        one_process(settings, root / "one", *SPLIT)
        assert end(processes) == [(0, []), (0, [])]
    return root


@pytest.mark.slow  # a minute and a half on two cores, both together
def test_two_processes_train_as_one_does(trained: Path):
    one, two = numbers(trained / "one"), numbers(trained / "two")
    assert list(one) == list(two) == [1, 2, 3, 4, 6]
    for step, record in one.items():
        assert_close(record, two[step])
    assert files(trained / "two") == files(trained / "one")
    samples = [(trained / name / "sample.txt").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1]
    assert latest_step(trained / "two" / "checkpoints") == 6


@pytest.mark.slow  # a minute and a half on two cores, both together
def test_each_resumes_the_other_and_a_signal_to_one_stops_both_at_a_saved_step(
    trained: Path, settings: Path, tmp_path: Path
):
    one, two = tmp_path / "two, then one", tmp_path / "one, then two"
    for workdir, name in ((one, "two"), (two, "one")):
        shutil.copytree(trained / name, workdir, ignore=shutil.ignore_patterns(".lock"))
    often = ["--steps", "100000", "--log-every", "1", "--checkpoint-every", "50000"]
    with two_processes(settings, two, *SPLIT, *often, "--eval-every", "50000") as processes:
        one_process(settings, one, *OTHER, "--steps", "8")
        deadline = time.monotonic() + 120
        while max(numbers(two)) < 10 and time.monotonic() < deadline:
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
        (code, first), (other_code, second) = end(processes)

    step = latest_step(two / "checkpoints")
    assert step == max(numbers(two))
    said = f"ended: stopped by SIGTERM, saved at step {step}; the same command goes on from there."
    assert (code, first) == (128 + signal.SIGTERM, [said])
    assert (other_code, second[-1]) == (128 + signal.SIGTERM, said)
    # Onto other processes, and another mesh: step 8 of one was evaluated, that of two was not.
    after = {name: value for name, value in numbers(one)[8].items() if name in COMPARED[:2]}
    assert_close(after, numbers(two)[8])


@pytest.mark.slow  # two processes that import JAX
def test_without_a_shared_disk_both_say_in_one_line_what_they_need(settings: Path, tmp_path: Path):
    with two_processes(settings, tmp_path / "a", *SPLIT, other=tmp_path / "b") as processes:
        ended = end(processes)
    for (code, said), name in zip(ended, "ab", strict=True):
        assert code == 2, said
        assert said == [
            f"error: What process 0 writes into --workdir {tmp_path / name} does not show for"
            " process 1 of 2: the workdir must be on a disk that all processes share, or in a"
            " bucket (gs://...)."
        ]
    assert not list(tmp_path.rglob(".shared-*"))


@pytest.mark.exhaustive
def test_an_error_in_one_process_ends_both_and_the_other_names_it(settings: Path, tmp_path: Path):
    with two_processes(settings, tmp_path, *SPLIT, program=("-c", FULL)) as processes:
        assert end(processes) == [
            (75, ["error: process 1 of 2 ended: [Errno 28] No space left on device"]),
            (1, ["error: [Errno 28] No space left on device"]),
        ]


@pytest.mark.exhaustive
def test_a_process_that_compiles_for_longer_is_waited_for(settings: Path, tmp_path: Path):
    """Of XLA's own, processes that meet for the first time wait for thirty seconds."""
    words = ("--steps", "1", "--run.sample-tokens", "1")
    with two_processes(settings, tmp_path, *SPLIT, *words, program=("-c", LATE)) as processes:
        assert end(processes) == [(0, []), (0, [])]


@pytest.mark.exhaustive
@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_is_killed_jax_ends_the_other_and_both_go_on_to_the_same_bits(
    trained: Path, settings: Path, tmp_path: Path, killed: int
):
    workdir = tmp_path / "w"
    began = time.monotonic()
    with two_processes(settings, workdir, *SPLIT) as processes:
        while not numbers(workdir).keys() & {3, 4} and time.monotonic() < began + 120:
            time.sleep(0.02)
        processes[killed].kill()
        (code, said) = end(processes)[1 - killed]
    assert code == -signal.SIGABRT, said
    text = "\n".join(said)
    assert ("leader task was preempted/died/restarted", "sending heartbeats):\n1\n")[killed] in text
    assert "Traceback" not in text
    with two_processes(settings, workdir, *SPLIT) as processes:
        assert end(processes) == [(0, []), (0, [])]
    assert differences(trained / "two", workdir) == []
