"""Damage to the files of a real run, and what the next start makes of it."""

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import numbers
from ocdbt import largest_that_is_read

from experiments import generate
from experiments.pretrain import __main__ as pretrain
from experiments.run.step_metrics import Meter
from polycom_jax.training import latest_step
from polycom_jax.training.checkpoint import CheckpointWarning

pytestmark = pytest.mark.slow  # real runs, damaged

Run = Callable[..., int]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run(settings: Path) -> Run:
    """Runs the program; returns its exit code."""

    def program(workdir: Path, *words: str) -> int:
        own = ("--config", str(settings), "--workdir", str(workdir), "--run.keep-last", "3")
        return pretrain.main([*own, *words])

    return program


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of six steps, with checkpoints of steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run(workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def begun(run: Run, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as a kill behind step 4 leaves it, with checkpoints of steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("begun") / "w"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    return workdir


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "w")


def flip_a_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


def half_delete(path: Path, at: int) -> None:
    step = next(parent for parent in path.parents if parent.name.isdecimal())
    files = sorted(file for file in step.rglob("*") if file.is_file())
    for file in files[::2]:
        file.unlink()


def tear(path: Path, at: int) -> None:
    step = next(parent for parent in path.parents if parent.name.isdecimal())
    (step / "state" / "_METADATA").unlink()


def harm(workdir: Path, step: int, damage: Callable[[Path, int], None]) -> None:
    """Does it to the values of a checkpoint, amid what is read of them."""
    path, middle = largest_that_is_read(workdir / "checkpoints" / str(step) / "state")
    damage(Path(path), middle)


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, half_delete, tear])
def test_a_damaged_newest_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    run: Run, whole: Path, copy: Path, damage: Any, capsys: pytest.CaptureFixture[str]
):
    harm(copy, 4, damage)
    with pytest.warns(CheckpointWarning, match="checkpoints/4 is damaged"):
        assert run(copy) == 0
    assert "resumed from the checkpoint of step 2" in capsys.readouterr().out
    assert numbers(copy) == numbers(whole)
    assert (copy / "checkpoints" / "quarantine" / "4-1").is_dir()
    assert latest_step(copy / "checkpoints") == 6


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew_or_touched(
    run: Run, copy: Path, capsys: pytest.CaptureFixture[str]
):
    for step in (2, 4):
        harm(copy, step, truncate)
    before = bytes_of(copy)
    with pytest.warns(CheckpointWarning, match="checkpoints/4 is damaged"):
        assert run(copy) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "checkpoints/2 is damaged" in error
    assert "no older one can be read" in error
    assert bytes_of(copy) == before


def test_checkpoints_without_the_config_are_not_begun_over(
    run: Run, copy: Path, capsys: pytest.CaptureFixture[str]
):
    (copy / "config.yaml").unlink()
    before = bytes_of(copy)
    assert run(copy) == 2
    error = capsys.readouterr().err
    assert "config.yaml" in error
    assert "checkpoints" in error
    assert error.count("\n") == 1
    assert bytes_of(copy) == before


@pytest.mark.parametrize("text", ["", "model: {pre", "\x00", "- 1", "model: {num_layers: two}"])
def test_a_damaged_config_is_told_in_one_line(
    run: Run, copy: Path, text: str, capsys: pytest.CaptureFixture[str]
):
    (copy / "config.yaml").write_text(text)
    assert run(copy) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert generate.main([str(copy)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_checkpoints_of_another_run_are_refused_with_the_differences(
    run: Run, copy: Path, capsys: pytest.CaptureFixture[str]
):
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 5"))
    before = bytes_of(copy)
    assert run(copy, "--seed", "5") == 2
    error = capsys.readouterr().err
    assert "run.seed: 0 there, 5 now" in error
    assert error.count("\n") == 1
    assert bytes_of(copy) == before


def test_a_config_of_another_function_is_refused_where_it_would_only_be_read(
    copy: Path, capsys: pytest.CaptureFixture[str]
):
    config = copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("activation: poly_norm", "activation: poly_norm_l2"))
    assert generate.main([str(copy)]) == 2
    error = capsys.readouterr().err
    assert "model.activation: 'poly_norm' there, 'poly_norm_l2' now" in error
    assert "was its config edited?" in error
    assert error.count("\n") == 1
    # What changes no number may be edited.
    config.write_text(text.replace("context_length: 32", "context_length: 64"))
    assert generate.main([str(copy), "--max-new-tokens", "2"]) == 0


def test_a_config_that_an_earlier_version_took_stays_readable(copy: Path):
    config = copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("profile_steps: null", "profile_steps: '900:910'"))
    assert config.read_text() != text
    assert generate.main([str(copy), "--max-new-tokens", "2"]) == 0
    assert pretrain.main([str(copy), "--steps", "8"]) == 0


def test_another_text_is_refused_with_what_changed(
    run: Run, copy: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = settings.parent / "little.txt"
    kept = text.read_text()
    try:
        text.write_text(kept.replace("lazy", "tired"))
        assert run(copy) == 2
    finally:
        text.write_text(kept)
    error = capsys.readouterr().err
    assert "little.txt" in error
    assert error.count("\n") == 1


def test_a_disk_that_is_full_is_told_and_the_last_checkpoint_goes_on(
    run: Run,
    whole: Path,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = bytes_of(copy / "checkpoints" / "4")
    save, push, reached = pretrain.Checkpoints.save, Meter.push, []

    def full(self: Any, step: int, *rest: Any, **options: Any) -> None:
        # As on a full disk: a file of values cannot grow beyond some bytes. Logs still can.
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        save(self, step, *rest, **options)
        deadline = time.monotonic() + 30
        while self._writer.is_saving_in_progress() and time.monotonic() < deadline:
            time.sleep(0.01)

    def note(self: Meter, step: int, *rest: Any) -> None:
        reached.append(step)
        push(self, step, *rest)

    monkeypatch.setattr(pretrain.Checkpoints, "save", full)
    monkeypatch.setattr(Meter, "push", note)
    try:
        assert run(copy, "--steps", "2000", "--checkpoint-every", "5", "--eval-every", "2000") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "checkpoint of step 5 could not be saved" in error
    assert error.count("\n") == 1
    assert reached[-1] == 6  # at the next step
    assert bytes_of(copy / "checkpoints" / "4") == kept
    monkeypatch.undo()
    assert run(copy) == 0
    assert numbers(copy) == numbers(whole)


def test_a_folder_that_is_used_is_refused(run: Run, copy: Path, capsys: pytest.CaptureFixture[str]):
    from experiments.run import lock

    before = bytes_of(copy)
    with lock.locked(copy):
        assert run(copy) == 2
    assert "Another run is writing to" in capsys.readouterr().err
    assert bytes_of(copy) == before
