"""Files that a disk refuses for a moment, for good, or that are not what was written."""

import builtins
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polycom_jax import _files
from polycom_jax._files import file_names, first_damage, in_made, passes, remove_folder, retried

PASSING = ["ESTALE", "EIO", "EAGAIN", "EINTR", "ETIMEDOUT", "EBUSY", "ENETDOWN", "ECONNRESET"]
LASTING = ["EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "ENOSPC", "ELOOP"]


def error(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, in no time."""
    seconds: list[float] = []
    monkeypatch.setattr(_files.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "deep/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


def written(folder: Path) -> _files.Digests:
    raws = {name: (folder / name).read_bytes() for name in file_names(folder)}
    return {name: (len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in raws.items()}


Refuse = Callable[[str, Iterator[OSError | None]], list[str]]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Opening a file that ends like this raises one error after the other; returns all opened."""
    real = builtins.open

    def make(end: str, errors: Iterator[OSError | None]) -> list[str]:
        opened: list[str] = []

        def fake(path, *rest, **options):
            opened.append(str(path))
            if str(path).endswith(end) and (next_one := next(errors)):
                raise next_one
            return real(path, *rest, **options)

        monkeypatch.setattr(builtins, "open", fake)
        return opened

    return make


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again_ever_more_slowly(name: str, waits: list[float]):
    left = [error(name), error(name)]

    def call() -> str:
        if left:
            raise left.pop()
        return "read"

    assert retried(call) == "read"
    assert waits == list(_files.WAITS_S[:2])
    assert waits == sorted(waits)


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_told_at_once(name: str, waits: list[float]):
    def call() -> None:
        raise error(name)

    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        retried(call)
    assert waits == []


def test_tries_are_bounded(waits: list[float]):
    tried = []

    def call() -> None:
        tried.append(1)
        raise error("ESTALE")

    with pytest.raises(OSError, match="Stale file handle"):
        retried(call)
    assert waits == list(_files.WAITS_S)
    assert len(tried) == len(waits) + 1
    assert sum(waits) < 30


def test_errors_without_a_number_are_told_by_their_kind():
    assert passes(TimeoutError("slow"))
    assert passes(ConnectionResetError())
    assert not passes(PermissionError())
    assert not passes(OSError("who knows"))
    assert not passes(ValueError("ESTALE"))


def test_only_what_was_refused_is_read_again(folder: Path, refuse: Refuse, waits: list[float]):
    files = written(folder)
    opened = refuse("b", iter([error("ESTALE"), error("EIO"), None]))
    assert first_damage(folder, files) == ""
    assert sorted(Path(path).name for path in opened) == ["a", "b", "b", "b", "c"]
    assert len(waits) == 2


def test_damage_that_is_seen_is_told_whatever_else_is_refused(
    folder: Path, refuse: Refuse, waits: list[float]
):
    files = written(folder)
    (folder / "deep" / "c").write_bytes(b"other")
    refuse("a", iter([error("ESTALE")]))
    assert first_damage(folder, files) == "deep/c has 5 bytes of 600"
    assert waits == []


@pytest.mark.parametrize("name", ["ESTALE", "EACCES"])
def test_what_cannot_be_read_is_no_damage(
    folder: Path, refuse: Refuse, waits: list[float], name: str
):
    files = written(folder)
    refuse("b", iter(lambda: error(name), None))
    with pytest.raises(OSError, match=f"{os.strerror(getattr(errno, name))}.*/b"):
        first_damage(folder, files)
    assert waits == (list(_files.WAITS_S) if name == "ESTALE" else [])


def test_a_folder_in_the_place_of_a_file_is_damage(folder: Path):
    files = written(folder)
    (folder / "a").unlink()
    (folder / "a").mkdir()
    assert first_damage(folder, files) == "a is a folder"
    (folder / "deep" / "c").unlink()
    (folder / "deep").rmdir()
    (folder / "deep").write_text("a file in the place of its folder")
    assert first_damage(folder, {"deep/c": files["deep/c"]}) == "deep/c is missing"


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("deep"):
            raise error("ESTALE")
        return real(path)

    assert file_names(folder) == ["a", "b", "deep/c"]
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match="Stale"):
        file_names(folder)


def test_files_of_a_folder_that_others_take_away_meanwhile_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("deep"):
            shutil.rmtree(path, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert file_names(folder) == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        file_names(folder / "deep")


def test_a_folder_is_made_again_where_others_take_it_away_before_it_is_used(tmp_path: Path):
    left = [1, 2]

    def call() -> int:
        if left:
            (tmp_path / "a" / "b").rmdir()
            (tmp_path / "a").rmdir()
            left.pop()
        return (tmp_path / "a" / "b" / "file").write_text("x")

    assert in_made(tmp_path / "a" / "b", call) == 1
    with pytest.raises(FileExistsError):
        in_made(tmp_path / "a" / "b" / "file", call)


def test_a_folder_may_be_removed_by_two(folder: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.rmdir

    def meanwhile(path: Path, **options: int) -> None:
        monkeypatch.setattr(os, "rmdir", real)
        (folder / "late").touch()  # the other has written into it again
        raise error("ENOTEMPTY")

    monkeypatch.setattr(os, "rmdir", meanwhile)
    remove_folder(folder)
    assert not folder.exists()
    remove_folder(folder)
    (folder.parent / "file").touch()
    remove_folder(folder.parent / "file" / "below")


def test_a_folder_may_be_removed_by_two_who_meet_at_each_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, every = os.unlink, tmp_path / "every"
    every.mkdir()
    for name in range(20):
        (every / f"{name}").touch()

    def meanwhile(path: str, **options: int) -> None:
        real(path, **options)  # the other is just before
        real(path, **options)

    monkeypatch.setattr(os, "unlink", meanwhile)
    remove_folder(every)
    assert not every.exists()
