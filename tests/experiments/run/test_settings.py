"""Settings of a folder: stored once, refused where they differ, with both values."""

import json
from pathlib import Path

import pytest

from experiments.run.settings import check_settings
from polycom_jax import InputError


def check(path: Path, **settings: object) -> None:
    check_settings(path, settings, free=("seeds",), holds="other runs", advice="Go elsewhere.")


def test_equal_settings_and_free_ones_are_taken(tmp_path: Path):
    path = tmp_path / "w" / "settings.json"
    check(path, rates=(0.1, 0.2), seeds=2)
    check(path, rates=[0.1, 0.2], seeds=5)
    assert json.loads(path.read_text()) == {"rates": [0.1, 0.2], "seeds": 5}


def test_others_are_refused_in_one_line_and_change_nothing(tmp_path: Path):
    path = tmp_path / "settings.json"
    check(path, rates=(0.1, 0.2), model="a", seeds=2)
    before = path.read_text()
    with pytest.raises(InputError) as refused:
        check(path, rates=(0.1, 0.2), model="b", seeds=3)
    assert str(refused.value) == (
        f"{tmp_path} holds other runs (model: 'a' there, 'b' now). Go elsewhere."
    )
    assert path.read_text() == before


def test_what_an_earlier_version_stored_beside_stays(tmp_path: Path):
    path = tmp_path / "settings.json"
    check(path, model="a", gone=1)
    check(path, model="a")
    assert json.loads(path.read_text()) == {"model": "a", "gone": 1}


def test_what_an_earlier_version_did_not_know_is_another_setting(tmp_path: Path):
    path = tmp_path / "settings.json"
    check(path, model="a")
    with pytest.raises(InputError, match="new: None there, 1 now"):
        check(path, model="a", new=1)
