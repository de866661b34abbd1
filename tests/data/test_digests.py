"""Checksums of files: those of a bucket, on a disk too, and those of earlier versions."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from polycom_jax import InputError
from polycom_jax.data import digests
from polycom_jax.data.files import looked_at


def digest(path: Path, **more: Any) -> str:
    return digests.file_digests([path], looked_at([path]), **more)[0]


def test_a_file_has_the_checksum_that_a_bucket_keeps(tmp_path: Path):
    path = tmp_path / "nine"
    path.write_bytes(b"123456789")
    assert digest(path) == "crc32c 4waSgw== 9"  # 0xE3069283, by its RFC
    assert digest(path, kind="sha256") == hashlib.sha256(b"123456789").hexdigest()
    path.write_bytes(b"x" * 9_000_000)
    assert digest(path) != digest(path, kind="sha256")


@pytest.mark.parametrize("kind", ["crc32c", "sha256"])
def test_a_file_without_content_is_known_as_that(tmp_path: Path, kind: Any):
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert digests.shown(digest(path, kind=kind)) in digests.EMPTY
    path.write_bytes(b"x")
    assert digests.shown(digest(path, kind=kind)) not in digests.EMPTY


def test_of_much_text_what_looks_as_before_is_read_once_a_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(digests, "READ_BYTES", 0)
    path, cache = tmp_path / "a", tmp_path / "cache"
    cache.mkdir()
    path.write_bytes(b"one")
    kinds: tuple[Any, ...] = ("crc32c", "sha256")
    before = [digest(path, cache=cache, kind=kind) for kind in kinds]
    assert before == [digest(path, kind=kind) for kind in kinds]
    with monkeypatch.context() as patch:
        patch.setattr(digests, "file_digest", None)
        assert [digest(path, cache=cache, kind=kind) for kind in kinds] == before
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))  # as long as before, and written at another time
    assert digest(path, cache=cache) == digest(path) != before[0]
    path.write_bytes(b"three")
    assert digest(path, cache=cache) == digest(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a cannot be read: Is a directory"):
        digests.file_digest(tmp_path / "a", looked_at([tmp_path / "a"])[0])
