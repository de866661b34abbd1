"""Places in a bucket whose server is away, refuses, or says nothing."""

import subprocess
import sys
import time
from pathlib import Path

import buckets
import pytest

from polycom_jax import InputError, _buckets, storage
from polycom_jax._files import passes


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
