"""Whose checkpoints a run may move or follow, and what it takes for a step and a score."""

import builtins
import errno
import io
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError, _files
from polycom_jax.training import Checkpoints, metadata
from polycom_jax.training import quarantine as folders
from polycom_jax.training.checkpoint import CheckpointWarning, SaveError

TREE: Any = {"params": {"w": jnp.arange(64.0).reshape(8, 8)}}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1, 2 and 3, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, TREE)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "c")


def aside(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "quarantine")) if (folder / "quarantine").exists() else []


def test_another_run_in_the_folder_is_noticed_and_its_checkpoints_stay(folder: Path):
    with Checkpoints(folder, keep_last=9) as one, Checkpoints(folder, keep_last=9) as other:
        one.restore(ABSTRACT)
        other.restore(ABSTRACT)
        other.save(4, TREE)
        other.wait()
        for step in (4, 5):
            with pytest.raises(InputError, match=r"Another run has meanwhile saved step 4 in .*/c"):
                one.save(step, TREE)
        one.restore(ABSTRACT)
        one.save(6, TREE)
        one.wait()
        with pytest.raises(InputError, match="meanwhile saved step 6"):
            other.save(5, TREE)
    assert one.all_steps() == [1, 2, 3, 4, 6]
    assert aside(folder) == []


def test_a_run_that_begins_and_meets_another_in_its_folder_is_refused(tmp_path: Path):
    with Checkpoints(tmp_path) as one, Checkpoints(tmp_path) as other:
        one.save(1, TREE)
        one.wait()
        with pytest.raises(InputError, match="up to step 1 that this run did not"):
            other.save(1, TREE)


def test_a_run_may_go_back_with_its_writer_open(folder: Path):
    with Checkpoints(folder, keep_last=9) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(4, TREE)
        with pytest.raises(InputError, match="step=2 is behind step 4"):
            checkpoints.save(2, TREE)
        checkpoints.restore(ABSTRACT, step=2)
        checkpoints.save(3, TREE)
    assert checkpoints.all_steps() == [1, 2, 3]
    assert aside(folder) == ["3-1", "4-1"]
    assert not list((folder / "quarantine").glob("*/torn.txt"))


def test_more_whole_ones_than_can_be_set_aside_are_told_before_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folders, "MOST_INTACT", 2)
    (folder / "quarantine" / "9-1").mkdir(parents=True)
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(InputError, match=r"holds 1 checkpoints that are not .* move 2 more"):
            checkpoints.restore(ABSTRACT, step=1)
        checkpoints.restore(ABSTRACT, step=2)
        checkpoints.restore_params(ABSTRACT["params"], step=1)  # who reads alone sets nothing aside


def test_damage_is_proven_again_before_it_is_written_down(folder: Path):
    """Somebody has mended the checkpoint between the restore and the save."""
    kept = (folder / "3" / metadata.FILE).read_bytes()
    (folder / "3" / metadata.FILE).unlink()
    (folder / "2" / metadata.FILE).write_text('{"custom_metadata": {}}')
    with Checkpoints(folder) as checkpoints:
        with pytest.warns(CheckpointWarning):
            checkpoints.restore(ABSTRACT)
        (folder / "3" / metadata.FILE).write_bytes(kept)
        checkpoints.save(2, TREE)
    assert aside(folder) == ["2-1", "3-1"]
    assert (folder / "quarantine" / "2-1" / "torn.txt").read_text().startswith("state/_METADATA is")
    assert metadata.read(folder / "quarantine" / "3-1").step == 3
    assert not (folder / "quarantine" / "3-1" / "torn.txt").exists()


def test_a_checkpoint_of_another_version_is_never_called_damaged(folder: Path):
    path = folder / "3" / metadata.FILE
    whole = json.loads(path.read_text())
    tree = whole["custom_metadata"] | {"format": 9}
    del tree["sha256"]
    whole["custom_metadata"] = {"sha256": metadata._digest(tree), **tree}
    path.write_text(json.dumps(whole))
    with Checkpoints(folder) as checkpoints:
        with pytest.warns(CheckpointWarning, match="format 9, and this version reads 1 and 2"):
            checkpoints.restore(ABSTRACT)
        checkpoints.save(3, TREE)
    assert aside(folder) == ["3-1"]
    assert not (folder / "quarantine" / "3-1" / "torn.txt").exists()


def test_a_refusal_while_a_checkpoint_is_saved_passes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    real, left = builtins.open, ["2/metrics/metrics"]

    def fake(path: Any, *rest: Any, **options: Any) -> Any:
        for end in left:
            if str(path).endswith(end):
                left.remove(end)
                raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *rest, **options)

    monkeypatch.setattr(_files, "WAITS_S", (0.0, 0.0))
    with Checkpoints(folder, keep_last=9) as checkpoints:
        checkpoints.restore(ABSTRACT)
        monkeypatch.setattr(builtins, "open", fake)
        monkeypatch.setattr(io, "open", fake)
        checkpoints.save(4, TREE)
    assert left == []
    assert metadata.read(folder / "4").step == 4
    assert checkpoints.all_steps() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["EACCES", "EROFS", "ENOSPC", "ESTALE"])
def test_a_folder_that_takes_nothing_is_a_failed_save(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    number = getattr(errno, name)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(ABSTRACT, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refuse)
            patch.setattr(Path, "rename", refuse)
            with pytest.raises(
                SaveError, match=f"No checkpoint can be saved.*{os.strerror(number)}"
            ):
                checkpoints.save(2, TREE)
        assert checkpoints.all_steps() == [1, 2, 3]
        checkpoints.save(2, TREE)
    assert checkpoints.all_steps() == [1, 2]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    with Checkpoints(tmp_path / "file") as checkpoints:
        for call in (checkpoints.latest_step, lambda: checkpoints.restore(ABSTRACT)):
            with pytest.raises(InputError, match="/file is a file"):
                call()
        with pytest.raises(InputError, match="/file is a file"):
            checkpoints.save(1, TREE)
    assert (tmp_path / "file").read_text() == "kept"


def test_strange_names_take_no_place_of_a_checkpoint(folder: Path):
    for name in ("1٣", "٣", "007", "notes", "9٩"):
        (folder / name / "metrics").mkdir(parents=True)
        (folder / name / "metrics" / "metrics").write_text("{}")
    (folder / "12").write_text("a file")
    with Checkpoints(folder, keep_last=2, keep_best=0) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(4, TREE)
        checkpoints.wait()
        assert checkpoints.all_steps() == [3, 4]
    assert {"1٣", "٣", "007", "notes", "9٩", "12"} < set(os.listdir(folder))


def test_a_tilde_in_a_folder_is_a_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("~/c") as checkpoints:
        checkpoints.save(1, TREE)
    assert (tmp_path / "~" / "c" / "1").is_dir()


@pytest.mark.parametrize("step", [np.int64(4), np.uint8(4), jnp.int32(4), np.array(4)])
def test_a_step_of_numpy_or_jax_is_its_number(folder: Path, step: Any):
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(ABSTRACT, step=step - 1)
        checkpoints.save(step, TREE, score=np.float32(1.5))
        checkpoints.save(4, TREE)
    assert metadata.read(folder / "4").step == 4
    assert Checkpoints(folder).best_step() == 4


@pytest.mark.parametrize("step", [-1, 1.0, np.float32(2), "3", None, Fraction(3), np.array([3])])
def test_a_step_that_is_no_whole_number_is_refused_before_the_save(tmp_path: Path, step: Any):
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(InputError, match=r"step=.* whole number of at least 0"),
    ):
        checkpoints.save(step, TREE)
    assert not (tmp_path / "c").exists()


SCORES = [(np.float32(1.5), 1.5), (jnp.float32(1.25), 1.25), (np.array(2), 2.0)]
NO_SCORES = [np.float32("nan"), jnp.float32("-inf")]


def test_scores_of_numpy_and_jax_are_numbers_and_nan_is_none(tmp_path: Path):
    scores = [*SCORES, *((score, None) for score in NO_SCORES)]
    with Checkpoints(tmp_path, keep_last=len(scores)) as checkpoints:
        for step, (score, _) in enumerate(scores):
            checkpoints.save(step, TREE, score=score)
    for step, (_, stored) in enumerate(scores):
        assert metadata.read(tmp_path / str(step)).step == step
        text = (tmp_path / str(step) / "metrics" / "metrics").read_text()
        assert text == ("{}" if stored is None else f'{{"score": {stored}}}')
    assert Checkpoints(tmp_path).best_step() == 1


@pytest.mark.parametrize("score", ["1.0", b"1", [1.0], np.ones(1), jnp.ones(2), 1j, {}, object()])
def test_a_score_that_is_no_number_is_refused_before_the_save(tmp_path: Path, score: Any):
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(InputError, match=r"score=.* must be a number"),
    ):
        checkpoints.save(1, TREE, score=score)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("numbers", [{"keep_last": 2.5}, {"keep_best": None}, {"keep_every": "3"}])
def test_what_is_kept_is_counted_in_whole_numbers(tmp_path: Path, numbers: Any):
    with pytest.raises(InputError, match="whole number"):
        Checkpoints(tmp_path, **numbers)
    assert Checkpoints(tmp_path, keep_last=np.int64(2), keep_every=jnp.int32(3)).all_steps() == []


@pytest.mark.parametrize("numbers", [{"keep_last": 0}, {"keep_best": -1}, {"keep_every": 0}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, numbers: Any):
    with pytest.raises(InputError, match=next(iter(numbers))):
        Checkpoints(tmp_path, **numbers)
