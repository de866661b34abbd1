"""Which checkpoint of a run is read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import optax
import pytest

from experiments.run.checkpoint_names import read_named, step_of
from polycom_jax import InputError
from polycom_jax.training import Checkpoints, start_state


def test_the_best_of_checkpoints_without_a_score_is_refused_and_not_the_latest(tmp_path: Path):
    state = start_state({"w": jnp.ones(2)}, optax.sgd(1.0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
        checkpoints.wait()
        with pytest.raises(InputError, match="has a held-out loss; take 'latest'"):
            step_of(checkpoints, "best")
        checkpoints.save(3, state, score=2.5)
        checkpoints.save(4, state)
        checkpoints.wait()
        assert step_of(checkpoints, "best") == 3
        assert step_of(checkpoints, "latest") is None


def test_the_best_is_another_one_where_its_run_has_deleted_the_first_meanwhile():
    bests, kept = iter([2, 5]), [5, 6]
    here = {"folder": "run", "best_step": lambda: next(bests)}

    def restore_params(shapes: object, *, step: int) -> tuple[int, object]:
        if step not in kept:
            raise InputError(f"There is no checkpoint of step {step}")
        return step, shapes

    saved: Any = SimpleNamespace(**here, restore_params=restore_params)
    assert read_named(saved, "best", "values") == (5, "values")  # pyright: ignore
    with pytest.raises(InputError, match="step 3"):
        read_named(saved, "3", "values")  # pyright: ignore
