"""Places: on a disk and in a bucket alike, refused by name, and away for a while."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import buckets
import pytest
from etils import epath

from polycom_jax import InputError, _buckets, staging, storage
from polycom_jax._files import passes


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


def test_a_copy_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*names: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "a").write_bytes(b"abc")
    storage.copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"abc"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


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
    second = storage.replace_if(place, b"2", first)
    assert second not in (None, first)
    assert storage.replace_if(place, b"3", first) is None
    assert storage.read_with_generation(place) == (b"2", second)
    storage.remove(place)
    assert storage.replace_if(place, b"4", second or 0) is None


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


def test_a_file_is_made_once_where_the_disk_knows_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source))

    monkeypatch.setattr(os, "link", link)
    assert storage.create(tmp_path / "a", b"first")
    assert not storage.create(tmp_path / "a", b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_a_server_that_is_away_for_a_while_is_asked_again(
    bucket: str, front: buckets.Front, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_buckets, "WAITS_S", (0.1,) * 20)
    place = storage.place(bucket) / "x"
    front.refuse_for(0.5)
    storage.write(place, b"1")
    front.refuse_for(0.5)
    assert storage.read(place) == b"1"
    front.refuse_for(0.5)
    assert list(storage.entries(place.parent)) == ["x"]
    assert len(front.refused) >= 3


def test_tries_at_a_server_are_bounded_and_its_error_is_one_of_the_moment(
    bucket: str, front: buckets.Front, monkeypatch: pytest.MonkeyPatch
):
    assert 10 < sum(_buckets.WAITS_S) < storage.REACH_S
    monkeypatch.setattr(_buckets, "WAITS_S", (0.0, 0.0))
    front.refusing = True
    with pytest.raises(OSError, match="does not answer") as raised:
        storage.write(storage.place(bucket) / "x", b"1")
    assert not passes(raised.value)  # who tries again tries no more
    assert raised.value.filename == f"{bucket}/x"
    assert front.refused.count("POST") == 3  # the client asks about its bucket, too


def test_a_write_whose_answer_was_lost_is_known_for_ones_own(
    bucket: str, front: buckets.Front, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_buckets, "WAITS_S", (0.0, 0.0))
    blob, real = _buckets._blob, list[str]()

    class Lossy:
        def __init__(self, place: str) -> None:
            self.blob = blob(place)

        def upload_from_string(self, *words: object, **more: object) -> None:
            self.blob.upload_from_string(*words, **more)
            real.append("arrived")
            if len(real) == 1:
                raise ConnectionResetError

        def __getattr__(self, name: str) -> object:
            return getattr(self.blob, name)

    monkeypatch.setattr(_buckets, "_blob", Lossy)
    assert storage.create(storage.place(bucket) / "x", b"mine")
    monkeypatch.undo()
    assert not storage.create(storage.place(bucket) / "x", b"mine")


def test_a_bucket_that_is_there_can_be_reached(bucket: str, tmp_path: Path):
    storage.require_reachable(storage.place(f"{bucket}/run"))
    storage.require_reachable(storage.place(tmp_path / "none"))


def test_a_bucket_that_is_not_there_is_named(server: buckets.Server):
    with pytest.raises(InputError, match=r"no bucket 'nobody-made-it'.*buckets create"):
        storage.require_reachable(storage.place("gs://nobody-made-it/run"))


def test_what_may_not_be_done_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch):
    from google.api_core.exceptions import Forbidden

    def refuse(*words: object, **more: object) -> None:
        raise Forbidden("x does not have storage.objects.list access")

    monkeypatch.setattr(_buckets._client(), "list_blobs", refuse)
    with pytest.raises(InputError, match=r"cannot be used: the account may not.*objects\.list"):
        storage.require_reachable(storage.place(bucket))


def test_a_server_that_is_gone_is_told_in_time(server: buckets.Server):
    with buckets.used("http://127.0.0.1:9"):
        begun = time.monotonic()
        with pytest.raises(InputError, match="cannot be reached: the bucket's server does not"):
            storage.require_reachable(storage.place("gs://bucket/run"))
    assert time.monotonic() - begun < storage.REACH_S


def test_a_server_that_says_nothing_is_not_waited_for(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "REACH_S", 0.1)
    monkeypatch.setattr(_buckets, "why_not", lambda place: time.sleep(2))
    with pytest.raises(InputError, match=r"no answer for 0\.1 s"):
        storage.require_reachable(storage.place(bucket))


def test_without_credentials_there_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("google.cloud.storage", reason=buckets.WITHOUT)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    with pytest.raises(InputError, match=r"no Google credentials.*gcloud auth"):
        storage.require_reachable(storage.place("gs://bucket/run"))


def test_without_the_extra_there_is_a_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_buckets, "_is_installed", lambda name: False)
    with pytest.raises(InputError, match=r"needs gcsfs and google\.cloud\.storage: pip install"):
        storage.require_reachable(storage.place("gs://bucket/run"))


def test_listings_are_never_kept(bucket: str):
    """Another host's new file is seen by what Orbax lists with, too."""
    place = storage.place(bucket)
    storage.write(place / "a" / "x", b"1")
    assert [path.name for path in place.iterdir()] == ["a"]
    code = (
        "import sys; from polycom_jax import staging, storage;"
        " storage.write(storage.place(sys.argv[1]) / 'b' / 'x', b'2')"
    )
    subprocess.run([sys.executable, "-c", code, bucket], check=True)
    assert sorted(path.name for path in place.iterdir()) == ["a", "b"]


def test_clients_of_buckets_are_imported_where_they_are_used():
    code = (
        "import sys, polycom_jax, polycom_jax.storage\n"
        "heavy = {'google.cloud.storage', 'gcsfs', 'fsspec', 'requests', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)), 'etils' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"
