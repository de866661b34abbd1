"""Two processes that share no disk: text, tokens and run are in a bucket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from experiments.pretrain import __main__ as pretrain
from experiments.run.metrics import read_metrics
from polycom_jax import storage
from polycom_jax.training import latest_step

pytestmark = pytest.mark.slow  # real runs

ROOT = Path(__file__).resolve().parents[2]
SPLIT = ("--mesh.data", "1", "--mesh.fsdp", "8")
COMPARED = ("step", "loss", "grad_norm", "heldout_loss", "bits_per_byte")


def start(disk: Path, index: int, coordinator: str, words: list[str]) -> subprocess.Popen[str]:
    """A process in a folder of its own, whose caches nobody else sees."""
    disk.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "POLYCOM_CACHE": str(disk / "cache"),
        "TMPDIR": str(disk),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    place = ["--hosts.coordinator", coordinator, "--hosts.count", "2", "--hosts.index", str(index)]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.pretrain", *words, *place],
        cwd=disk,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_they_train_as_one_process_does_and_go_on(settings: Path, bucket: str, tmp_path: Path):
    text = f"{bucket}/text/little.txt"
    storage.write(storage.place(text), (settings.parent / "little.txt").read_bytes())
    workdir = f"{bucket}/run"
    words = ["--config", str(settings), "--workdir", workdir, "--data", text]
    words += ["--data.cache-dir", f"{bucket}/tokens", *SPLIT]
    for steps, disks in (("4", ("a", "b")), ("6", ("c", "d"))):  # the first two disks are gone
        coordinator = f"localhost:{free_port()}"
        started = [
            start(tmp_path / disk, index, coordinator, [*words, "--steps", steps])
            for index, disk in enumerate(disks)
        ]
        try:
            said = [process.communicate(timeout=400)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0, 0], said
    assert latest_step(f"{workdir}/checkpoints") == 6
    assert not list(tmp_path.rglob("*.bin"))  # no shard came to a disk
    assert not list(tmp_path.rglob("gs:*"))

    alone = tmp_path / "alone"
    steps = ["--optim.decay-steps", "4", "--steps", "6"]
    command = ["--config", str(settings), "--workdir", str(alone), *SPLIT, *steps]
    assert pretrain.main(command) == 0
    two = read_metrics(storage.place(workdir) / "metrics.jsonl")
    one = read_metrics(alone / "metrics.jsonl")
    assert [record["step"] for record in two][-1] == 6
    by_step = {record["step"]: record for record in one}
    for record in two:
        for name in COMPARED:
            if name in record and name in by_step[record["step"]]:
                # Sums of float32 in another order, as between any two meshes of processes.
                assert record[name] == pytest.approx(by_step[record["step"]][name], rel=1e-5)
