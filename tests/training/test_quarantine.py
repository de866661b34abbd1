"""What lies in the folder of a run's checkpoints, and what is moved out of the way."""

import itertools
import os
from pathlib import Path

import pytest

from polycom_jax import InputError
from polycom_jax.training import quarantine as folders
from polycom_jax.training import restore
from polycom_jax.training.quarantine import all_steps, is_step, latest_step, quarantine


def made(folder: Path, *steps: int | str) -> Path:
    for step in steps:
        (folder / str(step)).mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["0", "7", "10", "123456789012345678901234567890"])
def test_a_step_is_a_number_as_python_writes_it(name: str):
    assert is_step(name)
    assert str(int(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "007", "00", "-1", "+1", "1.0", "1e3", "1_0", " 1", "1 ", "1\n", "٣", "1٣", "²", "x"],
)
def test_whatever_else_is_in_the_folder_is_no_step(tmp_path: Path, name: str):
    assert not is_step(name)
    made(tmp_path, 3, "4.orbax-checkpoint-tmp-1", "quarantine/9-1", *([name] if name else []))
    (tmp_path / "5").write_text("a file")
    os.symlink(tmp_path / "nowhere", tmp_path / "6")
    assert all_steps(tmp_path) == [3]


def test_steps_are_listed_in_order(tmp_path: Path):
    assert all_steps(made(tmp_path, 10, 9, 0)) == [0, 9, 10]
    assert latest_step(tmp_path) == 10
    assert latest_step(str(tmp_path)) == 10


def test_a_folder_that_is_not_there_has_none_and_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    assert all_steps(tmp_path / "nowhere") == all_steps(tmp_path / "file" / "c") == []
    with pytest.raises(InputError, match=r"/file is a file"):
        latest_step(tmp_path / "file")


def test_the_newest_of_the_damaged_stay_and_whole_ones_for_ever(tmp_path: Path):
    made(tmp_path, 1)
    quarantine(tmp_path, {1: ""})
    for n in range(1, 9):
        made(tmp_path, 4, 5)
        quarantine(tmp_path, {4: f"flaw {n}", 5: ""})
        for path in (tmp_path / "quarantine").glob(f"4-{n}/torn.txt"):
            os.utime(path, ns=(n, n))
    aside = tmp_path / "quarantine"
    left = {path.name for path in aside.iterdir()}
    assert left == {"1-1", *(f"5-{n}" for n in range(1, 9)), "4-6", "4-7", "4-8"}
    assert (aside / "4-8" / "torn.txt").read_text() == "flaw 8\n"
    assert not (aside / "5-8" / "torn.txt").exists()
    assert all_steps(tmp_path) == []


def test_more_whole_ones_than_fit_are_refused_before_anything_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folders, "MOST_INTACT", 3)
    # What earlier versions have set aside counts.
    made(tmp_path, "set-aside/2-1", "quarantine/3-1", "quarantine/notes", 4, 5, 6)
    with pytest.raises(InputError, match=r"holds 2 checkpoints that are not damaged.*move 2 more"):
        quarantine(tmp_path, {4: "", 5: "", 6: "torn"})
    assert all_steps(tmp_path) == [4, 5, 6]
    quarantine(tmp_path, {5: "", 6: "torn"})
    assert all_steps(tmp_path) == [4]


def test_on_a_full_disk_a_damaged_one_is_kept_as_if_it_were_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for _ in range(5):
        quarantine(made(tmp_path, 4), {4: "torn"})
    assert len(list((tmp_path / "quarantine").iterdir())) == 5


def test_numbers_go_on_from_those_that_earlier_versions_have_set_aside(tmp_path: Path):
    made(tmp_path, "set-aside/4-2", 4)
    quarantine(tmp_path, {4: "torn"})
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["4-3"]


def test_a_checkpoint_that_somebody_goes_on_touching_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    touched = iter(range(1_000))
    monkeypatch.setattr(restore, "fingerprint", lambda checkpoint: [next(touched)])
    monkeypatch.setattr(restore, "UNTOUCHED_S", 0.001)
    clock = itertools.count(step=restore.DELETED_S / 3)
    monkeypatch.setattr(restore.time, "monotonic", lambda: next(clock))
    with pytest.raises(InputError, match=r"1 is damaged"):
        restore.read_newest(made(tmp_path, 1), 1, {}, None, partial=True)
    assert next(touched) < 10
