"""Checkpoints in a bucket: which stand, which are set aside, and what is left of those."""

from typing import Any

import buckets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from polycom_jax import InputError, _buckets, _lease, storage
from polycom_jax.training import Checkpoints, in_bucket
from polycom_jax.training import quarantine as folders
from polycom_jax.training.checkpoint import CheckpointWarning
from polycom_jax.training.in_bucket import COMMITTED, SET_ASIDE, steps_in
from polycom_jax.training.quarantine import all_steps, path_of, quarantine

TREE: Any = {"params": {"w": jnp.arange(3000, dtype=jnp.float32)}, "step": jnp.int32(0)}
ABSTRACT: Any = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE
)


def at(step: int) -> Any:
    return jax.tree.map(lambda x: x + step, TREE)


@pytest.fixture
def folder(bucket: str) -> epath.Path:
    return storage.place(f"{bucket}/run/checkpoints")


def made(folder: epath.Path, *names: str) -> epath.Path:
    """Finished checkpoints, as far as their names tell."""
    for name in names:
        storage.write(folder / name / "state" / "values", b"x")
        storage.write(folder / name / COMMITTED, b"")
    return folder


def test_steps_are_those_that_were_finished_and_are_not_set_aside(folder: epath.Path):
    assert all_steps(folder) == []
    made(folder, "10", "9", "0", "notes", "007", "8.0", "7.01", "6.1.1")
    storage.write(folder / "11" / "state" / "values", b"cut short")
    storage.write(folder / "12", b"a file")
    assert all_steps(folder) == all_steps(str(folder)) == [0, 9, 10]
    quarantine(folder, {9: "", 10: "flaw"})
    assert all_steps(folder) == [0]
    assert storage.is_file(folder / "9" / "state" / "values")


def test_a_step_that_is_saved_again_has_a_folder_of_its_own(folder: epath.Path):
    made(folder, "4")
    assert path_of(folder, 4) == folder / "4"
    assert path_of(folder, 5) == folder / "5"
    quarantine(folder, {4: "flaw"})
    assert path_of(folder, 4) == folder / "4.1"
    made(folder, "4.1")
    assert path_of(folder, 4) == folder / "4.1"
    assert all_steps(folder) == [4]
    quarantine(folder, {4: ""})
    assert path_of(folder, 4) == folder / "4.2"


def test_the_newest_of_the_damaged_stay_and_whole_ones_for_ever(folder: epath.Path):
    for n in range(6):
        name = "4" if n == 0 else f"4.{n}"
        made(folder, name, "5" if n == 0 else f"5.{n}")
        quarantine(folder, {4: f"flaw {n}", 5: ""})
    left = {name.partition("/")[0] for name in storage.entries(folder)}
    assert left == {"5", *(f"5.{n}" for n in range(1, 6)), "4.3", "4.4", "4.5"}
    assert path_of(folder, 4) == folder / "4.6"
    assert folders.KEPT_TORN == 3


def test_too_many_whole_ones_are_for_a_person_to_choose_from(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folders, "MOST_INTACT", 1)
    made(folder, "1", "2", "3")
    quarantine(folder, {3: "", 1: "flaw"})
    with pytest.raises(InputError, match="set aside, holds 1 checkpoints that are not damaged"):
        quarantine(folder, {2: ""})
    assert all_steps(folder) == [2]


def test_a_deletion_that_was_cut_short_leaves_no_checkpoint(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
):
    made(folder, "4")
    quarantine(folder, {4: "flaw"})
    monkeypatch.setattr(storage, "remove_tree", lambda folder: None)
    in_bucket.delete(folder, "4")
    storage.remove(folder / "4" / SET_ASIDE)
    assert steps_in(folder).names == {}


def test_what_is_saved_is_restored_bit_for_bit_and_the_last_and_best_stay(folder: epath.Path):
    with Checkpoints(folder, keep_last=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, at(step), score=float(step))
    checkpoints = Checkpoints(str(folder))
    assert checkpoints.all_steps() == [1, 3, 4]
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (4, 1)
    for step in (1, 3, 4):
        found: Any = Checkpoints(folder).restore(ABSTRACT, step=step)
        jax.tree.map(np.testing.assert_array_equal, found, at(step))


def test_a_score_that_comes_later_ranks_its_checkpoint(folder: epath.Path):
    with Checkpoints(folder, keep_last=1) as checkpoints:
        for step, score in {1: 1.0, 2: None}.items():
            checkpoints.save(step, at(step), score=score)
    with Checkpoints(folder, keep_last=1) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(2, at(2), score=0.5)
        assert (checkpoints.best_step(), checkpoints.all_steps()) == (2, [2])
        checkpoints.save(3, at(3), score=2.0)
    assert (checkpoints.best_step(), checkpoints.all_steps()) == (2, [2, 3])
    found: Any = Checkpoints(folder).restore(ABSTRACT, step=2)
    jax.tree.map(np.testing.assert_array_equal, found, at(2))


def test_a_run_that_goes_back_marks_what_is_in_its_way(folder: epath.Path):
    with Checkpoints(folder, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, at(step))
    inside = storage.entries(folder / "3")
    values = max(inside, key=lambda name: inside[name].size)
    data = bytearray(storage.read(folder / "3" / values))
    data[len(data) // 2] ^= 1
    storage.write(folder / "3" / values, bytes(data))
    with Checkpoints(folder, keep_last=3) as checkpoints:
        with pytest.warns(CheckpointWarning, match="checkpoints/3 is damaged"):
            found: Any = checkpoints.restore(ABSTRACT)
        assert int(found["step"]) == 2
        checkpoints.save(3, at(30))
    assert all_steps(folder) == [1, 2, 3]
    assert b"checksums differ: params.w" in storage.read(folder / "3" / SET_ASIDE)
    assert bytes(data) == storage.read(folder / "3" / values)
    again: Any = Checkpoints(folder).restore(ABSTRACT)
    assert int(again["step"]) == 30


@pytest.fixture
def lagging(bucket: str, front: buckets.Front) -> epath.Path:
    """A folder with the checkpoints of steps 1, 2 and 3, and listings that know that of 1 alone."""
    folder = storage.place(f"{bucket}/run/checkpoints")
    with Checkpoints(folder, keep_last=3) as checkpoints:
        checkpoints.save(1, at(1))
        checkpoints.wait()
        assert all_steps(folder) == [1]
        front.freeze()
        for step in (2, 3):
            checkpoints.save(step, at(step))
    assert storage.folders(folder) == ["1"]
    return folder


def test_the_newest_checkpoint_is_found_though_a_listing_does_not_show_it(lagging: epath.Path):
    assert all_steps(lagging) == [1, 2, 3]
    with Checkpoints(lagging, keep_last=3) as checkpoints:
        with pytest.raises(InputError, match="holds checkpoints up to step 3"):
            checkpoints.save(1, at(1))
        found: Any = checkpoints.restore(ABSTRACT)
        jax.tree.map(np.testing.assert_array_equal, found, at(3))
        checkpoints.save(4, at(4))
    assert all_steps(lagging)[-3:] == [2, 3, 4]  # 1 is deleted as far as a listing shows it


@pytest.mark.exhaustive
def test_one_that_a_listing_does_not_show_is_not_written_over(lagging: epath.Path):
    before = storage.entries(lagging / "3")
    with Checkpoints(lagging, keep_last=3) as checkpoints:
        found: Any = checkpoints.restore(ABSTRACT, step=1)
        jax.tree.map(np.testing.assert_array_equal, found, at(1))
        checkpoints.save(3, at(30))
    assert all_steps(lagging) == [1, 3]
    now = storage.entries(lagging / "3")
    assert now.pop(SET_ASIDE).size > 0
    assert now == before
    again: Any = Checkpoints(lagging).restore(ABSTRACT)
    jax.tree.map(np.testing.assert_array_equal, again, at(30))


@pytest.mark.exhaustive
def test_one_that_is_shown_still_or_was_never_finished_is_not_taken(lagging: epath.Path):
    storage.remove_tree(lagging / "1")
    in_bucket.announce(lagging, 4)  # of which nothing but the name came to be
    assert storage.folders(lagging) == ["1"]
    assert all_steps(lagging) == [2, 3]
    found: Any = Checkpoints(lagging).restore(ABSTRACT)
    jax.tree.map(np.testing.assert_array_equal, found, at(3))


def test_orbax_asks_a_server_that_is_away_for_half_a_minute():
    """What it takes that from is private: a failure here says that a new version has changed it."""
    from orbax.checkpoint.type_handlers import get_ts_context

    in_bucket.bound_retries()
    for ocdbt in (True, False):
        retries = get_ts_context(use_ocdbt=ocdbt).spec.to_json()["gcs_request_retries"]
        assert retries == {"max_retries": 7, "initial_delay": "500ms", "max_delay": "8s"}
    waits = [min(0.5 * 2**n, 8.0) for n in range(7)]
    assert 10 < sum(_buckets.WAITS_S) <= sum(waits) < _lease.LOST_S
