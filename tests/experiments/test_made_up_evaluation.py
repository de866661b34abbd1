"""An evaluation that was cut short is made up: in its checkpoint first, then in its line."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments.pretrain.loop import make_up
from experiments.run.lock import Kept
from experiments.run.metrics import Logs, cut_short, read_metrics
from experiments.run.trackers import Trackers
from polycom_jax.training import Checkpoints

STATE: Any = {"params": {"w": jnp.arange(8.0)}}
ABSTRACT: Any = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE
)
LINE = {"step": 2, "loss": 2.5}
NUMBERS = {"heldout_loss": 2.25, "bits_per_byte": 3.25}


def logs_in(folder: Path) -> Logs:
    trackers = Trackers((), folder, {}, step=2, warn=print)
    return Logs(folder / "metrics.jsonl", trackers, step=2)


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A run that has ended at step 2, without the evaluation that was due."""
    with Checkpoints(tmp_path / "checkpoints", keep_last=1) as checkpoints:
        checkpoints.save(1, STATE, score=2.5)
        checkpoints.save(2, STATE)
    with logs_in(tmp_path) as logs:
        logs.write(1, {"loss": 2.75, "heldout_loss": 2.5})
        logs.write(2, {"loss": 2.5})
    return tmp_path


def resumed(folder: Path, numbers: dict[str, float]) -> Checkpoints:
    with Checkpoints(folder / "checkpoints", keep_last=1) as checkpoints, logs_in(folder) as logs:
        state = checkpoints.restore(ABSTRACT)
        make_up(LINE, numbers, state, checkpoints, Kept(), logs)
    return checkpoints


def test_the_checkpoint_and_the_line_get_the_numbers(cut: Path):
    found = resumed(cut, NUMBERS)
    assert (found.best_step(), found.all_steps()) == (2, [2])
    assert read_metrics(cut / "metrics.jsonl")[-1] == LINE | NUMBERS


def test_a_death_before_the_line_leaves_the_evaluation_due(
    cut: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Logs, "amend", die)
        with pytest.raises(KeyboardInterrupt):
            resumed(cut, NUMBERS)
    assert cut_short(cut / "metrics.jsonl", 2) == LINE
    found = resumed(cut, NUMBERS)
    assert (found.best_step(), found.all_steps()) == (2, [2])
    assert cut_short(cut / "metrics.jsonl", 2) is None


def test_an_evaluation_that_is_cut_short_again_changes_nothing(cut: Path):
    found = resumed(cut, {})
    assert (found.best_step(), found.all_steps()) == (1, [1, 2])
    assert cut_short(cut / "metrics.jsonl", 2) == LINE
