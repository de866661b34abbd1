"""Suite attention: causal attention from queries, keys and values to heads' outputs."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from experiments.benchmark import formulas_torch as formulas
from experiments.benchmark import peers, shapes
from experiments.benchmark.calls import JaxFunction, TorchFunction, to_torch
from experiments.benchmark.contest import able, hold
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell
from polycom_jax.kernels.attention import attention
from polycom_jax.kernels.implementations import ATTENTION_IMPLEMENTATIONS
from polycom_jax.models import ModelConfig

OURS = "attention"
PEERS = ("implementations", "torch-eager", "torch-compile")


def cases(options: Options) -> list[Case]:
    """One for each pass."""
    return [Case("attention", which, partial(_run, options, which)) for which in options.passes]


def _run(options: Options, which: str, tell: Tell) -> Result:
    cfg = shapes.model(options, "swiglu")  # attention does not see the activation
    chosen, left_out = peers.split(options.peers, PEERS)
    tell("making arguments")
    q, k, v, dy = _arguments(options, cfg)

    def ours(name: str, implementation: Any) -> Contestant:
        f = partial(attention, implementation=implementation)
        return JaxFunction(name, f, (q, k, v), dy, OURS).contestant(which)

    contestants = [ours(OURS, None)]
    if "implementations" in chosen:
        makers = {
            f"{OURS} [{name}]": partial(ours, f"{OURS} [{name}]", name)
            for name in ATTENTION_IMPLEMENTATIONS
        }
        contestants += able(makers, left_out)
    variants = [peer for peer in chosen if peer in formulas.VARIANTS]
    if variants:
        formulas.begin_case()
    contestants += [_torch(variant, q, k, v, dy).contestant(which) for variant in variants]
    heads = f"{cfg.num_heads} heads of {cfg.head_dim}, {cfg.num_kv_heads} for keys and values"
    return hold(
        "attention",
        f"{which}, {shapes.describe(options, cfg)}, {heads}",
        contestants,
        options,
        tell,
        dtype=cfg.dtype,
        references=(OURS,),
        left_out=left_out,
        numbers=lambda readings: partial(_rate, options, cfg, which),
    )


def _rate(
    options: Options, cfg: ModelConfig, which: str, name: str, seconds: float
) -> Mapping[str, float]:
    """GFLOP/s of the two products, of which causal attention needs half: the backward pass has
    twice as many (recomputation not counted)."""
    pairs = cfg.context_length**2 / 2
    forward = 4 * shapes.batch_size(options) * cfg.num_heads * cfg.head_dim * pairs
    times = {"forward": 1, "backward": 2, "both": 3}[which]
    return {"GFLOP/s": forward * times / seconds / 1e9}


def _arguments(options: Options, cfg: ModelConfig) -> tuple[jax.Array, ...]:
    """(q, k, v, dy), [batch, seq, heads, head_dim]."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads, cfg.num_heads)
    rows = (shapes.batch_size(options), cfg.context_length)
    return tuple(
        jax.random.normal(key, (*rows, h, cfg.head_dim)).astype(cfg.dtype)
        for key, h in zip(keys, heads, strict=True)
    )


def _torch(variant: str, q: Any, k: Any, v: Any, dy: Any) -> TorchFunction:
    """PyTorch's own, on heads-third arrays as Hugging Face's models hand it theirs."""
    grouped = q.shape[2] != k.shape[2]

    def attend(q: Any, k: Any, v: Any) -> Any:
        from torch.nn.functional import (  # pyright: ignore[reportMissingImports]
            scaled_dot_product_attention,
        )

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return y.transpose(1, 2).contiguous()

    device = peers.torch_device()
    leaves = tuple(to_torch(x, device, gradient=True) for x in (q, k, v))
    name = f"{variant} {OURS}"
    f = formulas.VARIANTS[variant](attend)
    return TorchFunction(name, f, leaves, to_torch(dy, device), OURS)
