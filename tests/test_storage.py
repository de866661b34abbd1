"""Places: on a disk and in a bucket alike, and refused by name."""

import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest
from etils import epath

from polycom_jax import InputError, _buckets, _files, staging, storage


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> epath.Path:
    """A place that holds nothing yet."""
    root = request.getfixturevalue("bucket") if request.param == "bucket" else str(tmp_path)
    return storage.place(f"{root}/new/folder")


def test_a_file_is_written_whole_and_read_by_ranges(folder: epath.Path):
    place = folder / "deep" / "file"
    assert not storage.is_file(place)
    storage.write(place, b"old")
    storage.write(place, b"0123456789")
    assert storage.is_file(place)
    assert storage.is_folder(place.parent)
    assert not storage.is_folder(place)
    assert storage.read(place) == b"0123456789"
    assert storage.read(place, 3) == b"3456789"
    assert storage.read(place, 3, 4) == b"3456"
    assert storage.read(place, 8, 100) == b"89"
    assert storage.read(place, 10, 100) == storage.read(place, 50) == b""
    assert storage.read(place, 2, 0) == b""
    storage.write(place, b"")
    assert storage.read(place) == storage.read(place, 0, 9) == b""


def test_only_one_of_two_makes_a_file(folder: epath.Path):
    place, made = folder / "one", []

    def make(number: int) -> None:
        if storage.create(place, b"%d" % number):
            made.append(number)

    threads = [threading.Thread(target=make, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert storage.read(place) == b"%d" % made[0]
    assert list(storage.entries(folder)) == ["one"]


def test_files_are_listed_with_what_tells_them_apart(folder: epath.Path):
    assert storage.entries(folder) == {}
    assert storage.folders(folder) == []
    for name in ("b", "a/deep/c", "a/d", "ab/e"):
        storage.write(folder / name, name.encode())
    first = storage.entries(folder)
    assert sorted(first) == ["a/d", "a/deep/c", "ab/e", "b"]
    assert first["a/deep/c"].size == 8
    assert sorted(storage.entries(folder / "a")) == ["d", "deep/c"]
    assert storage.folders(folder) == ["a", "ab"]
    storage.write(folder / "b", b"B")
    assert storage.entries(folder)["b"] != first["b"]
    assert (first["b"].checksum is None) is not storage.is_remote(folder)


def test_what_is_removed_is_gone_and_need_not_have_been(folder: epath.Path):
    for name in ("a/b", "a/c/d", "ab"):
        storage.write(folder / name, b"x")
    storage.remove(folder / "a" / "b")
    storage.remove(folder / "a" / "b")
    assert sorted(storage.entries(folder)) == ["a/c/d", "ab"]
    storage.remove_tree(folder / "a")
    storage.remove_tree(folder / "a")
    assert sorted(storage.entries(folder)) == ["ab"]


def test_a_file_that_is_renamed_while_a_folder_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "stays").write_bytes(b"123")
    names = [".9f.tmp", "stays"]  # another process has renamed the first of them meanwhile
    monkeypatch.setattr(storage, "file_names", lambda folder: names)
    assert {name: one.size for name, one in storage.entries(tmp_path).items()} == {"stays": 3}
    (tmp_path / ".9f.tmp").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"9f\.tmp"):  # it has not gone, it leads nowhere
        storage.entries(tmp_path)


def test_below_a_file_there_is_no_folder_to_list(tmp_path: Path):
    (tmp_path / "file").touch()
    assert storage.entries(tmp_path / "file" / "below") == {}
    with pytest.raises(NotADirectoryError):
        storage.entries(tmp_path / "file")


def test_a_file_is_copied_and_later_writes_to_one_are_not_to_the_other(folder: epath.Path):
    first, second = folder / "first", folder / "deep" / "second"
    storage.write(first, b"0123")
    for _ in range(2):  # again, as by two who do the same
        storage.copy(first, second)
        assert storage.read(second) == b"0123"
    storage.write(first, b"other")
    assert storage.read(second) == b"0123"
    storage.copy(first, second)
    storage.remove(first)
    assert storage.read(second) == b"other"
    assert sorted(storage.entries(folder)) == ["deep/second"]
    with pytest.raises(FileNotFoundError):
        storage.copy(first, second)


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that knows none."""

    def refused(*names: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)


@pytest.mark.usefixtures("without_links")
def test_a_copy_needs_no_links(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    storage.copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"abc"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.usefixtures("without_links")
def test_without_links_a_name_that_a_killed_process_took_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_files, "FILLED_S", 0.2)
    place = tmp_path / "plan"
    place.touch()  # killed between taking the name and filling the file
    assert not storage.is_made(place)
    assert storage.create(place, b"whole")
    assert storage.is_made(place)
    assert not storage.create(place, b"other")
    assert place.read_bytes() == b"whole"


@pytest.mark.usefixtures("without_links")
def test_without_links_a_name_that_another_process_is_filling_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_files, "FILLED_S", 60)
    place = tmp_path / "plan"
    place.touch()
    other = threading.Timer(0.3, lambda: storage.write(place, b"theirs"))
    other.start()
    assert not storage.create(place, b"ours")
    other.join()
    assert place.read_bytes() == b"theirs"


def test_what_is_not_there_is_named(folder: epath.Path):
    with pytest.raises(FileNotFoundError) as raised:
        storage.read(folder / "none")
    assert raised.value.filename == str(folder / "none")


def test_a_bucket_keeps_the_crc32c_of_what_it_holds(bucket: str):
    place = storage.place(bucket) / "nine"
    storage.write(place, b"123456789")
    assert storage.entries(place.parent)["nine"].checksum == "4waSgw=="  # 0xE3069283, by its RFC


def test_a_write_by_generation_fails_where_somebody_wrote_before(bucket: str):
    place = storage.place(bucket) / "x"
    storage.write(place, b"1")
    first = storage.entries(place.parent)["x"].generation
    second = _buckets.put(str(place), b"2", first)
    assert second not in (None, first)
    assert _buckets.put(str(place), b"3", first) is None
    assert storage.read_with_generation(place) == (b"2", second)
    storage.remove(place)
    assert _buckets.put(str(place), b"4", second) is None


def test_what_is_staged_is_where_it_belongs_once_it_is_put(folder: epath.Path):
    big = os.urandom(9 << 20)  # in several parts
    with staging.Staged(folder) as staged:
        staged.local.mkdir(parents=True, exist_ok=True)
        (staged.local / "lines").write_text("1\n")
        staged.put()
        assert storage.read(folder / "lines") == b"1\n"
        first = storage.entries(folder)["lines"]
        (staged.local / "deep").mkdir()
        (staged.local / "deep" / "big").write_bytes(big)
        staged.put()
        assert storage.entries(folder)["lines"] == first  # what has not changed stays
        (staged.local / "lines").write_text("1\n2\n")
    assert storage.read(folder / "lines") == b"1\n2\n"
    assert storage.read(folder / "deep" / "big") == big
    assert staged.local.exists() is not storage.is_remote(folder)


def test_what_failed_halfway_is_not_put(bucket: str):
    place = storage.place(bucket)
    with contextlib.suppress(KeyError), staging.Staged(place) as staged:
        (staged.local / "half").write_text("ha")
        raise KeyError
    assert storage.entries(place) == {}


def test_a_folder_is_fetched_for_who_wants_files_of_the_system(folder: epath.Path):
    for name in ("a", "deep/b"):
        storage.write(folder / name, name.encode())
    with staging.fetched(folder) as local:
        assert {name: (local / name).read_bytes() for name in storage.entries(local)} == {
            "a": b"a",
            "deep/b": b"deep/b",
        }
    assert local.exists() is not storage.is_remote(folder)


@pytest.mark.parametrize("name", ["s3://b/x", "hf://b", "http://b/x", "az://b", "file:///x"])
def test_other_stores_are_refused_with_what_to_use(name: str):
    with pytest.raises(InputError, match=r"not supported.*gs://BUCKET.*gcsfuse"):
        storage.place(name)


@pytest.mark.parametrize("name", ["gs://", "gs:///x", "gs:/b/x", "gs:b", Path("gs://b/x")])
def test_half_a_uri_never_means_a_local_folder(name: str | Path):
    with pytest.raises(InputError, match="gs://BUCKET"):
        storage.place(name)


def test_names_in_a_bucket_do_not_climb():
    with pytest.raises(InputError, match=r"no '\.\.'"):
        storage.place("gs://bucket/a/../b")


def test_local_places_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(storage.place("runs/x")) == f"{tmp_path}/runs/x"
    assert str(storage.place("~/x")) == "/home/somebody/x"
    assert str(storage.place("/a:b//c/")) == "/a:b/c"
    assert str(storage.place("gs://b/x/")) == "gs://b/x"
    assert str(storage.place(storage.place("gs://b/x") / "y")) == "gs://b/x/y"
    assert str(storage.named("~/x")) == "~/x"
    assert str(storage.named(Path("runs/x"))) == "runs/x"
    assert str(storage.absolute(storage.named("~/x"))) == f"{tmp_path}/~/x"


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path: Path):
    before = os.umask(0o027)
    try:
        storage.write(tmp_path / "a", b"x")
        storage.create(tmp_path / "b", b"x")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage.write(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left.*{tmp_path / 'a'}"):
        storage.write(tmp_path / "a", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_where_no_folder_can_be_made_its_name_is_told_and_not_a_temporary_one(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("y" * 300)):
        for put in (storage.write, storage.create):
            with pytest.raises(OSError, match=rf"'{folder}'$"):
                put(folder / "a", b"x")


def test_a_file_is_made_once_where_the_disk_knows_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source))

    monkeypatch.setattr(os, "link", link)
    assert storage.create(tmp_path / "a", b"first")
    assert not storage.create(tmp_path / "a", b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]
