"""Suite loss: from final hidden states to cross entropy, whole and in chunks of tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import formulas_torch as formulas
from experiments.benchmark import peers, shapes
from experiments.benchmark.calls import JaxFunction, TorchFunction, to_torch
from experiments.benchmark.contest import hold
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell
from experiments.benchmark.steps import batch
from polycom_jax import params as pm
from polycom_jax.models import ModelConfig, specs
from polycom_jax.training.loss import hidden_nats

WHOLE = "whole"
CHUNK = 512
"""Tokens a chunk, where none is asked for."""
PEERS = ("implementations", "torch-eager", "torch-compile", "liger")


def cases(options: Options) -> list[Case]:
    """One for each pass."""
    return [Case("loss", which, partial(_run, options, which)) for which in options.passes]


def _run(options: Options, which: str, tell: Tell) -> Result:
    chosen, left_out = peers.split(options.peers, PEERS)
    cfg = replace(shapes.model(options, "swiglu"), loss_chunk=None)
    chunk = options.loss_chunk or CHUNK
    tell("making arguments")
    x, table = _arguments(options, cfg)
    rows = {name: jnp.array(value) for name, value in batch(options, cfg).items()}
    ours = {WHOLE: _ours(WHOLE, cfg, x, table, rows)}
    if "implementations" in chosen:
        name = f"chunks of {chunk}"
        ours[name] = _ours(name, replace(cfg, loss_chunk=chunk), x, table, rows)
    contestants = [function.contestant(which) for function in ours.values()]
    contestants += _torch_contestants(chosen, which, cfg, x, table, rows)
    return hold(
        "loss",
        f"{which}, {shapes.describe(options, cfg)}, {cfg.vocab_size:,} ids",
        contestants,
        options,
        tell,
        dtype=cfg.dtype,
        references=(WHOLE,),
        left_out=left_out,
        numbers=lambda readings: partial(_temporaries, ours, which),
        notes=("whole, chunks of: ours; both have gradients for the hidden states and the table",),
    )


def _temporaries(
    ours: Mapping[str, JaxFunction], which: str, name: str, seconds: float
) -> Mapping[str, float]:
    """Memory that our compiled program takes besides arguments and results."""
    size = ours[name].temporary_bytes(which) if name in ours else None
    return {} if size is None else {"temporaries MiB": size / 2**20}


def _arguments(options: Options, cfg: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Hidden states in the model's dtype, and the float32 table with its padding."""
    for_x, for_table = jax.random.split(jax.random.key(0))
    name = "embed" if cfg.tie_embeddings else "unembed"
    table = pm.init({name: specs(cfg)[name]}, for_table)[name]
    shape = (shapes.batch_size(options), cfg.context_length, cfg.embed_dim)
    return jax.random.normal(for_x, shape).astype(cfg.dtype), table


def _ours(
    name: str, cfg: ModelConfig, x: jax.Array, table: jax.Array, rows: Mapping[str, jax.Array]
) -> JaxFunction:
    key = "embed" if cfg.tie_embeddings else "unembed"

    def mean_nats(x: Any, table: Any, rows: Any) -> Any:
        return hidden_nats(cfg, {key: table}, x, rows) / rows["mask"].size

    return JaxFunction(name, mean_nats, (x, table), jnp.ones(()), "loss", fixed=(dict(rows),))


def _torch_contestants(
    chosen: Sequence[str],
    which: str,
    cfg: ModelConfig,
    x: jax.Array,
    table: jax.Array,
    rows: Mapping[str, jax.Array],
) -> list[Contestant]:
    wanted: dict[str, Callable[..., Any]] = {
        peer: formulas.VARIANTS[peer](formulas.cross_entropy)
        for peer in chosen
        if peer in formulas.VARIANTS
    }
    if "liger" in chosen:
        wanted["liger"] = formulas.liger_cross_entropy
    if not wanted:
        return []
    formulas.begin_case()
    device = peers.torch_device()
    leaf = to_torch(x, device, gradient=True)
    real = to_torch(table[: cfg.vocab_size], device, gradient=True)
    targets = to_torch(rows["targets"].reshape(-1), device).long()
    one = to_torch(jnp.ones(()), device)
    padding = table.shape[0] - cfg.vocab_size

    def padded(gradients: Sequence[Any]) -> list[Any]:
        from torch.nn.functional import pad  # pyright: ignore[reportMissingImports]

        dx, dtable = gradients
        return [dx, pad(dtable, (0, 0, 0, padding))]

    return [
        TorchFunction(peer, f, (leaf, real), one, "loss", (targets,), padded).contestant(which)
        for peer, f in wanted.items()
    ]
