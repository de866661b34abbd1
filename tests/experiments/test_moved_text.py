"""A run goes on where its text is moved between a disk and a bucket, or was begun long ago."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.evaluate import __main__ as evaluate
from experiments.run.folder import KNOWN_AS, Workdir
from experiments.run.metrics import read_metrics
from polycom_jax import storage
from polycom_jax.data import digests

COMPARED = ("step", "loss", "grad_norm", "heldout_loss", "bits_per_byte")
OLD = "sha256"
Run = Callable[..., int]


def numbers(workdir: Path) -> list[dict[str, Any]]:
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k in COMPARED} for record in records]


@pytest.fixture
def places(settings: Path, bucket: str, tmp_path: Path) -> tuple[str, str]:
    """The little text on a disk and in a bucket."""
    text = (settings.parent / "little.txt").read_bytes()
    (tmp_path / "little.txt").write_bytes(text)
    storage.write(storage.place(f"{bucket}/text/little.txt"), text)
    return str(tmp_path / "little.txt"), f"{bucket}/text/little.txt"


@pytest.mark.parametrize(
    "order",
    [
        pytest.param((0, 1), id="to a bucket", marks=pytest.mark.slow),
        pytest.param((1, 0), id="from a bucket", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_where_its_text_has_moved(
    run: Run, whole: Path, places: tuple[str, str], tmp_path: Path, order: tuple[int, int]
):
    first, second = (places[index] for index in order)
    words = ("--data.cache-dir", str(tmp_path / "cache"))
    assert run(tmp_path / "run", "--data", first, "--steps", "2", *words, *SCHEDULE) == 0
    assert run(tmp_path / "run", "--data", second, *words, *SCHEDULE) == 0
    assert numbers(tmp_path / "run")[-1] == numbers(whole)[-1]
    assert Workdir(tmp_path / "run").read_config().data.source == second


SCHEDULE = ("--optim.decay-steps", "6")


@pytest.mark.slow
def test_a_run_that_began_under_sha256_goes_on_and_may_then_move(
    run: Run,
    whole: Path,
    places: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    here, there = places
    real = digests.file_digests
    with monkeypatch.context() as patch:
        patch.setattr(
            digests, "file_digests", lambda a, b, c=None, kind="": real(a, b, c, "sha256")
        )
        assert run(tmp_path / "run", "--data", here, "--steps", "2", *SCHEDULE) == 0
    began = Workdir(tmp_path / "run").record()
    assert not any("crc32c" in one for one in began["data"]["files"].values())
    moved = tmp_path / "moved.txt"
    moved.write_bytes(Path(here).read_bytes())
    assert evaluate.main([str(tmp_path / "run"), "--data", str(moved)]) == 0
    assert run(tmp_path / "run", "--data", there, "--steps", "4", *SCHEDULE) == 2
    found = capsys.readouterr()
    assert re.search("trained on other data", " ".join((found.out + found.err).split()))
    assert run(tmp_path / "run", "--data", here, "--steps", "4", *SCHEDULE) == 0
    record = Workdir(tmp_path / "run").record()
    assert record["data_fingerprint"] == began["data_fingerprint"] != record[KNOWN_AS]
    assert run(tmp_path / "run", "--data", there, *SCHEDULE) == 0
    assert numbers(tmp_path / "run")[-1] == numbers(whole)[-1]
