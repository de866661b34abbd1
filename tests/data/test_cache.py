"""What is in the cache folder is whole, made once, and locks say who is waited for."""

import builtins
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from polycom_jax import InputError, _files
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


def test_a_folder_is_built_once(tmp_path: Path):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "x").write_text("done")

    for _ in range(2):
        cache.build_once(tmp_path / "k", build, timeout_s=5, report=quietly)
        assert (tmp_path / "k" / "x").read_text() == "done"
    assert len(built) == 1
    assert built[0] != tmp_path / "k"  # it was built elsewhere, and renamed


def test_a_build_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path: Path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        cache.build_once(tmp_path / "k", fail, timeout_s=5, report=quietly)
    assert [p.name for p in tmp_path.iterdir()] == ["k.lock"]
    cache.build_once(tmp_path / "k", lambda folder: None, timeout_s=5, report=quietly)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path):
    (tmp_path / "k.tmp-1234").mkdir()
    (tmp_path / "other.tmp-1234").mkdir()
    cache.build_once(tmp_path / "k", lambda folder: None, timeout_s=5, report=quietly)
    assert {p.name for p in tmp_path.iterdir()} == {"k", "k.lock", "other.tmp-1234"}


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


def test_prepared_data_that_a_disk_refuses_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "tokens.bin").write_bytes(b"123")
    cache.seal(tmp_path)
    refused = OSError(errno.ESTALE, "Stale file handle")
    left = [refused, refused]
    real = builtins.open

    def fake(path: Any, *rest: Any, **options: Any) -> Any:
        if str(path).endswith("tokens.bin") and left:
            raise left.pop()
        return real(path, *rest, **options)

    monkeypatch.setattr(_files, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(builtins, "open", fake)
    cache.check_seal(tmp_path)
    left = [refused] * 3
    with pytest.raises(OSError, match=r"Stale file handle.*tokens\.bin"):
        cache.check_seal(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(InputError, match=r"damaged \(tokens\.bin is missing\)"):
        cache.check_seal(tmp_path)
