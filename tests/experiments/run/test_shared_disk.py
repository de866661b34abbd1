"""Processes of a run and their workdir, on one disk or on several."""

from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.run import shared_disk
from experiments.run.shared_disk import check_shared
from polycom_jax import InputError


def as_process(
    index: int, monkeypatch: pytest.MonkeyPatch, token: str | None, others: dict[int, bool]
) -> None:
    """This process is the `index`th of three; the others tell what is given."""

    def gather(what: str, value: Any) -> dict[int, Any]:
        if isinstance(value, str):
            return {0: value if index == 0 else token}
        return others | {index: value}

    monkeypatch.setattr(shared_disk, "gather", gather)
    monkeypatch.setattr(shared_disk, "SHOWS_S", 0.3)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: index)


def test_a_folder_that_all_see_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    as_process(0, monkeypatch, None, {1: True, 2: True})
    check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".shared-abc").touch()
    as_process(1, monkeypatch, "abc", {0: True, 2: True})
    check_shared(tmp_path)


def test_who_does_not_see_it_is_named_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    as_process(0, monkeypatch, None, {1: False, 2: False})
    with pytest.raises(InputError, match="does not show for processes 1, 2 of 3: the workdir must"):
        check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    as_process(1, monkeypatch, "abc", {0: True, 2: True})
    with pytest.raises(InputError, match=f"{tmp_path} does not show for process 1 of 3"):
        check_shared(tmp_path)


def test_a_single_process_looks_for_nothing(tmp_path: Path):
    check_shared(tmp_path / "none")
