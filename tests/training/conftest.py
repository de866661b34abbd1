"""A minuscule model and random batches: uneven masks, several documents a row."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from shapes import TINY

from polycom_jax.models import ModelConfig
from polycom_jax.sharding import make_mesh
from polycom_jax.training import OptimConfig, TrainState, make_state

VOCAB = 100  # padded to 128, or to 256 where the vocabulary is split in two


@pytest.fixture(scope="session")
def model() -> Callable[..., ModelConfig]:
    def build(**overrides: Any) -> ModelConfig:
        return replace(TINY, **({"vocab_size": VOCAB, "context_length": 8} | overrides))

    return build


@pytest.fixture(scope="session")
def meshes() -> dict[str, Mesh]:
    return {
        "one device": make_mesh(devices=jax.devices()[:1]),
        "data 8": make_mesh(data=8),
        "fsdp 8": make_mesh(data=1, fsdp=8),
        "fsdp 4, tensor 2": make_mesh(data=1, fsdp=4, tensor=2),
        "data 2, fsdp 2, tensor 2": make_mesh(data=2, fsdp=2, tensor=2),
    }


@pytest.fixture(scope="session")
def initial(model, meshes) -> Callable[[str], TrainState]:
    """The state before the first step on a mesh, compiled once for all tests; not to be donated."""
    return functools.cache(
        lambda mesh: make_state(model(), OptimConfig(), jax.random.key(3), meshes[mesh])
    )


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, np.ndarray]]:
    def build(seed: int = 0, rows: int = 16, length: int = 8) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, VOCAB, (rows, length + 1), dtype=np.int32)
        # Row r keeps a target with chance r / rows: micro-batches hold very different numbers.
        mask = rng.random((rows, length)) < np.arange(rows)[:, None] / rows
        cut = rng.integers(1, length, (rows, 1))
        column = np.arange(length, dtype=np.int32)[None, :]
        return {
            "tokens": ids[:, :-1],
            "targets": ids[:, 1:],
            "mask": mask,
            "segment_ids": 1 + (column >= cut).astype(np.int32),
            "positions": np.where(column >= cut, column - cut, column).astype(np.int32),
        }

    return build
