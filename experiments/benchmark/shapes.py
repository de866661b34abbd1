"""The model whose shapes a suite takes, its optimiser and its batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax

from experiments.benchmark.options import BEST, SMALL, Options
from polycom_jax._errors import InputError, require
from polycom_jax.models import ModelConfig, preset
from polycom_jax.table import get_activation
from polycom_jax.training import OptimConfig
from polycom_jax.training.recipes import recipe

# Five million parameters, for two CPU cores: what a first experiment on a laptop looks like. No
# document mask: the peers have none.
_SMALL = ModelConfig(
    vocab_size=2048,
    num_layers=6,
    embed_dim=256,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    gated_width=688,
    context_length=256,
    tie_embeddings=True,
    document_mask=False,
)
STEPS = 1000
"""Length of the run that a measured step is part of; it sets the learning rate alone."""

_BATCH = {SMALL: 16, "tiny": 8, "dense-110m": 16, "dense-350m": 8, "dense-1b": 4, "llama-7b": 1}
"""Sequences a step on one device."""


def name(options: Options) -> str:
    """The model's name: the one asked for, or this backend's."""
    return options.model or (SMALL if jax.default_backend() == "cpu" else "dense-1b")


def model(options: Options, activation: str) -> ModelConfig:
    """The model with that activation, at equal parameters whether gated or not."""
    chosen = name(options)
    cfg = _SMALL if chosen == SMALL else preset(chosen, document_mask=False)
    changes: dict[str, Any] = {"activation": activation}
    # What has coefficients has several implementations, too.
    reads = get_activation(activation).reads
    if options.implementation not in (None, BEST) and "implementation" in reads:
        changes["activation_options"] = replace(
            cfg.activation_options, implementation=options.implementation
        )
    for field, value in (
        ("context_length", options.seq_len),
        ("dtype", options.dtype),
        ("remat", options.remat),
        ("loss_chunk", options.loss_chunk),
    ):
        if value is not None:
            changes[field] = value
    return replace(cfg, **changes)


def fitting(options: Options, activations: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that the model's hidden layer has room for, and why there are no others.

    Raises:
        InputError: there is none.
    """
    left_out: dict[str, str] = {}
    for each in activations:
        cfg = model(options, each)
        try:
            cfg.activation_fn.specs_at(cfg.hidden_width)
        except InputError as error:
            left_out[each] = str(error)
    found = [each for each in activations if each not in left_out]
    require(bool(found), f"{name(options)}: {' '.join(left_out.values())}")
    return found, left_out


def optimizer(options: Options) -> OptimConfig:
    """The recipe's; the small model is trained like "tiny"."""
    chosen = name(options)
    return recipe("tiny" if chosen == SMALL else chosen).optim


def batch_size(options: Options) -> int:
    """Sequences a step."""
    return options.batch_size or _BATCH[name(options)]


def describe(options: Options, cfg: ModelConfig) -> str:
    """The shape in words."""
    return f"{name(options)}, {batch_size(options)} x {cfg.context_length} tokens, {cfg.dtype}"
