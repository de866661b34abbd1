"""The cache folder, and locks that say who is waited for."""

import os
import threading
from pathlib import Path

import pytest

from polycom_jax import InputError
from polycom_jax.data import cache


def quietly(message: str) -> None:
    del message


def test_the_folder_is_the_given_one_else_the_variable_else_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("POLYCOM_CACHE", str(tmp_path / "variable"))
    assert cache.cache_folder(str(tmp_path / "given")) == tmp_path / "given"
    assert cache.cache_folder(None) == tmp_path / "variable"
    monkeypatch.delenv("POLYCOM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder(None).is_relative_to(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written.*POLYCOM_CACHE"):
        cache.cache_folder(str(tmp_path / "file" / "cache"))


def test_a_digest_depends_on_every_part():
    assert cache.digest("a", 1) == cache.digest("a", 1)
    assert len({cache.digest(*p) for p in [("a", 1), ("a", 2), ("b", 1), ("a",), ("a1",)]}) == 5


def test_waiting_for_a_lock_is_said_and_ends_with_its_name(tmp_path: Path):
    path, held, free = tmp_path / "k.lock", threading.Event(), threading.Event()

    def hold() -> None:
        with cache.locked(path, timeout_s=5, report=quietly):
            held.set()
            free.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    said: list[str] = []
    try:
        assert held.wait(30)
        with (
            pytest.raises(InputError, match=r"0\.1 s.*lock_timeout_s") as caught,
            cache.locked(path, timeout_s=0.1, report=said.append),
        ):
            pass
    finally:
        free.set()
        thread.join()
    assert os.fspath(path) in str(caught.value)
    assert len(said) == 1
    assert os.fspath(path) in said[0]
    with cache.locked(path, timeout_s=0.1, report=quietly):
        pass  # and it is free again


def test_a_folder_whose_name_is_no_utf8_is_refused(tmp_path: Path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(InputError, match="its name is no UTF-8"):
        cache.cache_folder(name)
    assert not os.path.exists(name)


def test_in_the_place_of_a_bucket_a_local_folder_is_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("POLYCOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.local_cache_folder("gs://bucket/cache").is_relative_to(tmp_path)
    assert cache.local_cache_folder(str(tmp_path / "given")) == tmp_path / "given"
