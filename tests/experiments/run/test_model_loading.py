"""Which checkpoint of a run is read."""

from pathlib import Path

import jax.numpy as jnp
import optax
import pytest

from experiments.run import model_loading
from polycom_jax import InputError
from polycom_jax.training import Checkpoints, start_state


def test_the_best_of_checkpoints_without_a_score_is_refused_and_not_the_latest(tmp_path: Path):
    chosen = model_loading._step  # pyright: ignore[reportPrivateUsage]
    state = start_state({"w": jnp.ones(2)}, optax.sgd(1.0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
        checkpoints.wait()
        with pytest.raises(InputError, match="has a held-out loss; take 'latest'"):
            chosen(checkpoints, "best")
        checkpoints.save(3, state, score=2.5)
        checkpoints.save(4, state)
        checkpoints.wait()
        assert chosen(checkpoints, "best") == 3
        assert chosen(checkpoints, "latest") is None
