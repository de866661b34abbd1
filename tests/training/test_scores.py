"""A score that is measured after its checkpoint was saved: it ranks as one saved at once."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ports import free_port

from polycom_jax import storage
from polycom_jax.training import Checkpoints, checkpoint, scores
from polycom_jax.training.checkpoint import SaveError

ROOT = Path(__file__).resolve().parents[2]
TREE: Any = {"params": {"w": jnp.arange(64.0).reshape(8, 8), "b": jnp.float32(3)}}
ABSTRACT: Any = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE
)


def opened(folder: Path) -> Checkpoints:
    return Checkpoints(folder, keep_last=1, keep_best=1)


def saved(folder: Path, *, last: float | None) -> Path:
    """Steps 100 to 300, of which 300 is the best; its score is `last`, or not measured yet."""
    with opened(folder) as checkpoints:
        for step, score in {100: 2.0, 200: 1.0, 300: last}.items():
            checkpoints.save(step, TREE, score=score)
    return folder


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("without"), last=None)


@pytest.fixture
def cut(without: Path, tmp_path: Path) -> Path:
    """What a signal leaves that has cut the evaluation of step 300 short."""
    return shutil.copytree(without, tmp_path / "cut")


def score_file(folder: Path, step: int) -> Path:
    return folder / str(step) / "metrics" / "metrics"


def resumed(folder: Path, score: float) -> None:
    with opened(folder) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(300, TREE, score=score)


def test_a_score_after_a_restart_ranks_and_keeps_what_one_at_the_save_does(
    cut: Path, tmp_path: Path
):
    whole = saved(tmp_path / "whole", last=0.5)
    assert (opened(cut).best_step(), opened(cut).all_steps()) == (200, [200, 300])
    values = {name: storage.read(cut / "300" / name) for name in storage.entries(cut / "300")}
    resumed(cut, 0.5)
    for folder in (whole, cut):
        assert (opened(folder).best_step(), opened(folder).all_steps()) == (300, [300])
    name = "metrics/metrics"
    assert storage.read(cut / "300" / name) == storage.read(whole / "300" / name) != values[name]
    now = {name: storage.read(cut / "300" / name) for name in storage.entries(cut / "300")}
    assert now == values | {name: now[name]}
    found: Any = opened(cut).restore(ABSTRACT)
    jax.tree.map(np.testing.assert_array_equal, found, TREE)


def test_a_run_that_goes_on_keeps_what_has_got_its_score(cut: Path):
    with opened(cut) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(300, TREE, score=0.5)
        for step in (400, 500):
            checkpoints.save(step, TREE, score=3.0)
    assert (checkpoints.best_step(), checkpoints.all_steps()) == (300, [300, 500])


@pytest.mark.parametrize("part", ["write_score", "delete_rest"])
def test_a_death_on_the_way_leaves_a_checkpoint_that_the_next_start_completes(
    cut: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, part, die)
        with pytest.raises(KeyboardInterrupt):
            resumed(cut, 0.5)
    assert opened(cut).all_steps() == [200, 300]
    for _ in range(2):
        resumed(cut, 0.5)
        assert (opened(cut).best_step(), opened(cut).all_steps()) == (300, [300])


def test_of_equal_scores_the_newest_is_the_best_and_none_is_passed_over(tmp_path: Path):
    for step, score in {1: 2.0, 2: 1.0, 3: 1.0, 4: 3.0}.items():
        score_file(tmp_path, step).parent.mkdir(parents=True)
        scores.write(tmp_path / str(step), {"score": score})
    (tmp_path / "5").mkdir()
    assert scores.best({step: tmp_path / str(step) for step in range(1, 6)}) == 3


def test_a_score_may_come_while_the_writer_is_open_and_is_written_once(tmp_path: Path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, TREE, score=1.0)
        checkpoints.save(2, TREE)
        checkpoints.save(2, TREE, score=0.5)
        assert (checkpoints.best_step(), checkpoints.all_steps()) == (2, [2])
        written = score_file(tmp_path, 2).stat()
        for score in (0.5, None, np.nan):
            checkpoints.save(2, TREE, score=score)
        assert os.path.samestat(score_file(tmp_path, 2).stat(), written)
        checkpoints.save(3, TREE, score=2.0)
    assert (checkpoints.best_step(), checkpoints.all_steps()) == (2, [2, 3])


def test_a_full_disk_leaves_the_checkpoint_without_a_score(
    cut: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(place: Any, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", full)
        with pytest.raises(SaveError, match=r"score of step 300 .* in .*/cut: No space left"):
            resumed(cut, 0.5)
    assert (opened(cut).best_step(), opened(cut).all_steps()) == (200, [200, 300])
    resumed(cut, 0.5)
    assert opened(cut).all_steps() == [300]


def test_no_folder_is_made_for_a_checkpoint_that_is_gone(cut: Path):
    with opened(cut) as checkpoints:
        checkpoints.restore(ABSTRACT)
        shutil.rmtree(cut / "300")
        with pytest.raises(SaveError, match="step 300 is no longer in"):
            checkpoints.save(300, TREE, score=0.5)
    assert not (cut / "300").exists()


def test_one_of_the_earlier_format_gets_a_score_too(tmp_path: Path):
    shutil.unpack_archive(Path(__file__).with_name("format1.zip"), tmp_path / "c")
    with opened(tmp_path / "c") as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(2, TREE, score=-5.0)
        found: Any = checkpoints.restore(ABSTRACT)
    assert (checkpoints.best_step(), checkpoints.all_steps()) == (2, [2])
    assert score_file(tmp_path / "c", 2).read_text() == '{"score": -5.0}'
    jax.tree.map(np.testing.assert_array_equal, found, TREE)


# The first process alone is given the score, and both take it.
PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from polycom_jax.hosts import HostsConfig, joined
from polycom_jax.training import Checkpoints

folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = HostsConfig(f"localhost:{port}", 2, index)
with joined(config, report_error=lambda error: print(error, file=sys.stderr) or 3):
    split = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    values = np.arange(8, dtype=np.float32)
    tree = {"w": jax.make_array_from_callback((8,), split, values.__getitem__)}
    with Checkpoints(folder, keep_last=1) as checkpoints:
        checkpoints.save(1, tree, score=1.0)
        checkpoints.save(2, tree)
    with Checkpoints(folder, keep_last=1) as checkpoints:
        checkpoints.restore({"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=split)})
        checkpoints.save(2, tree, score=None if index else 0.5)
        print(checkpoints.best_step(), checkpoints.all_steps())
        checkpoints.save(3, tree, score=2.0)
        checkpoints.wait()
        print(checkpoints.best_step(), checkpoints.all_steps())
"""


@pytest.mark.slow
def test_two_processes_agree_on_a_score_that_comes_later(tmp_path: Path):
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path / "c"), port, index],
            env={"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in "01"
    ]
    try:
        for process in started:
            said, error = process.communicate(timeout=240)
            assert process.returncode == 0, error
            assert said.splitlines()[-2:] == ["2 [2]", "2 [2, 3]"]
    finally:
        for process in started:
            process.kill()
