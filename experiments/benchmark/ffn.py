"""Suite ffn: the feed-forward block, norm and projections included."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from experiments.benchmark import formulas_torch as formulas
from experiments.benchmark import peers, shapes
from experiments.benchmark.calls import JaxFunction, TorchFunction, to_torch
from experiments.benchmark.contest import hold
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell
from polycom_jax import params as pm
from polycom_jax.models import ModelConfig
from polycom_jax.models.layers import ffn, ffn_specs

ACTIVATIONS = ("poly_norm", "poly_relu", "relu2", "swiglu")
"""Blocks of equal numbers of parameters: gated ones are two thirds as wide."""
PEERS = ("yardsticks", "torch-eager", "torch-checkpoint", "torch-compile")
YARDSTICKS = frozenset({"relu2", "swiglu"})


def cases(options: Options) -> list[Case]:
    """One for each pass."""
    return [Case("ffn", which, partial(_run, options, which)) for which in options.passes]


def _run(options: Options, which: str, tell: Tell) -> Result:
    chosen, left_out = peers.split(options.peers, PEERS)
    activations = [
        name
        for name in options.activations or ACTIVATIONS
        if name not in YARDSTICKS or "yardsticks" in chosen or name in options.activations
    ]
    activations, unfit = shapes.fitting(options, activations)
    left_out |= unfit
    cfg = shapes.model(options, activations[0])
    case = f"{which}, {shapes.describe(options, cfg)}"
    tell("making arguments")
    formulas_used = [peer for peer in chosen if peer in formulas.VARIANTS]
    if formulas_used:
        formulas.begin_case()
    contestants: list[Contestant] = []
    for activation in activations:
        contestants += _block(options, activation, which, formulas_used, left_out)
    return hold(
        "ffn",
        case,
        contestants,
        options,
        tell,
        dtype=cfg.dtype,
        references=tuple(dict.fromkeys((activations[0], "relu2", "swiglu"))),
        left_out=left_out,
        numbers=lambda readings: partial(_rate, options, which),
    )


def _rate(options: Options, which: str, name: str, seconds: float) -> Mapping[str, float]:
    """GFLOP/s of the matrix products."""
    activation = name.split()[-1]
    cfg = shapes.model(options, activation)
    tokens = shapes.batch_size(options) * cfg.context_length
    products = 3 if cfg.activation_fn.gated else 2
    forward = 2 * tokens * cfg.embed_dim * cfg.hidden_width * products
    times = {"forward": 1, "backward": 2, "both": 3}[which]
    return {"GFLOP/s": forward * times / seconds / 1e9}


def _block(
    options: Options,
    activation: str,
    which: str,
    variants: Sequence[str],
    left_out: dict[str, str],
) -> Iterator[Contestant]:
    cfg = shapes.model(options, activation)
    x, params, dy = _arguments(options, cfg)
    yield JaxFunction(
        activation, lambda x, params: ffn(cfg, params, x, None), (x, params), dy, activation
    ).contestant(which)
    formula = formulas.FORMULAS.get(activation)
    if variants and formula is None:
        left_out[f"torch {activation}"] = "there is no PyTorch formula for it"
        return
    for variant in variants:
        if variant != "torch-compile" and activation in YARDSTICKS:
            continue  # the yardsticks' peer is the best that PyTorch makes of them
        assert formula is not None
        yield _torch(variant, formula, cfg, x, params, dy).contestant(which)


def _arguments(options: Options, cfg: ModelConfig) -> tuple[Any, Any, Any]:
    """(x, params, dy) in the model's dtype, coefficients and norms in float32."""
    specs = ffn_specs(cfg)
    for_params, for_x, for_dy = jax.random.split(jax.random.key(0), 3)
    params = pm.cast(specs, pm.init(specs, for_params), cfg.dtype)
    shape = (shapes.batch_size(options), cfg.context_length, cfg.embed_dim)
    x, dy = (jax.random.normal(key, shape).astype(cfg.dtype) for key in (for_x, for_dy))
    return x, params, dy


def _torch(
    variant: str, formula: Callable[..., Any], cfg: ModelConfig, x: Any, params: Any, dy: Any
) -> TorchFunction:
    """The same block as PyTorch users write it: weights are [out, in]."""
    device = peers.torch_device()
    names = [name for name in ("w_gate", "w_up", "w_down") if name in params]
    weights = [to_torch(params[name].T, device, gradient=True) for name in names]
    norm = to_torch(params["norm"].astype(cfg.dtype), device, gradient=True)
    learned: list[Any] = []
    if params["activation"]:
        coeffs = to_torch(params["activation"]["coeffs"].astype(cfg.dtype), device)
        learned = [p.clone().requires_grad_(True) for p in formulas.parameters(coeffs)]
    # The official code checkpoints its activation; torch.compile is given the whole block.
    inner = formulas.VARIANTS[variant](formula) if variant == "torch-checkpoint" else formula

    def block(x: Any, norm: Any, *rest: Any) -> Any:
        from torch.nn.functional import linear, rms_norm  # pyright: ignore[reportMissingImports]

        *into, down = rest[: len(names)]
        y = rms_norm(x, norm.shape, norm, cfg.norm_eps)
        return linear(inner(*(linear(y, w) for w in into), *rest[len(names) :]), down)

    def gradients(found: Sequence[Any]) -> list[Any]:
        """In the order of the JAX block's: x, then parameters by name."""
        dx, dnorm, *rest = found
        by_name = {name: d.T for name, d in zip(names, rest, strict=False)}
        coefficients = rest[len(names) :]
        activation = [formulas.coefficients(*coefficients)] if coefficients else []
        return [dx, *activation, dnorm, *(by_name[name] for name in sorted(by_name))]

    f = formulas.compiled(block) if variant == "torch-compile" else block
    leaf = to_torch(x, device, gradient=True)
    return TorchFunction(
        f"{variant} {cfg.activation_name}",
        f,
        (leaf, norm, *weights, *learned),
        to_torch(dy, device),
        cfg.activation_name,
        gradients=gradients,
    )
