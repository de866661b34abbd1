"""One training step of each contestant of the suite train, with the state it moves on."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from experiments.benchmark import shapes
from experiments.benchmark.options import Options
from polycom_jax.models import ModelConfig
from polycom_jax.sharding import make_mesh
from polycom_jax.training import make_model_step, make_state, put_batch

HF = "hf-llama torch.compile"
HF_ACTIVATION = "swiglu"
"""The one that Llama has."""


class Step(Protocol):
    """One update after another; all contestants begin with the same parameters and batch."""

    def __call__(self) -> Any:
        """Starts an update; returns (loss, gradient norm) before it, on the device."""
        ...

    def wait(self, outcome: Any) -> Any:
        """Returns when that update is done."""
        ...

    def numbers(self, outcome: Any) -> tuple[float, float]:
        """Reads them."""
        ...

    def peak_device_bytes(self) -> int | None:
        """Most memory held on the accelerator; None on a CPU."""
        ...


def batch(options: Options, cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Random tokens, one document a row, every position a target."""
    rows, length = shapes.batch_size(options), cfg.context_length
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, length + 1), np.int32)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "mask": np.ones((rows, length), bool),
        "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }


class Ours:
    """A step of `polycom_jax.training` on one device, with the recipe's optimiser."""

    def __init__(self, options: Options, activation: str) -> None:
        cfg = shapes.model(options, activation)
        optim = shapes.optimizer(options)
        mesh = make_mesh(devices=jax.devices()[:1])
        self._state = make_state(cfg, optim, jax.random.key(0), mesh)
        self._step = make_model_step(cfg, optim, shapes.STEPS, mesh)
        self._batch = put_batch(batch(options, cfg), mesh)

    def compile(self) -> jax.stages.Compiled:
        """The program of a step, which later calls run."""
        self._step: Any = self._step.lower(self._state, self._batch).compile()
        return self._step

    def __call__(self) -> Any:
        """One update; the state it starts from is donated."""
        self._state, metrics = self._step(self._state, self._batch)
        return metrics["loss"], metrics["grad_norm"]

    def wait(self, outcome: Any) -> Any:
        """Waits for the new state too: the loss is there before it."""
        return jax.block_until_ready((outcome, self._state))

    def numbers(self, outcome: Any) -> tuple[float, float]:
        """Loss and gradient norm."""
        return float(outcome[0]), float(outcome[1])

    def peak_device_bytes(self) -> int | None:
        """What JAX's allocator has held at most."""
        stats: Mapping[str, int] | None = jax.devices()[0].memory_stats()
        return None if not stats else stats.get("peak_bytes_in_use")


def make_step(options: Options, name: str) -> Step:
    """The contestant called `name`: ours with that activation, or Hugging Face's Llama for `HF`."""
    if name != HF:
        return Ours(options, name)
    from experiments.benchmark.llama_torch import HuggingFace

    return HuggingFace(options)
