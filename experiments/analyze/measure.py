"""Everything that is measured of one model, as a tree that JSON can hold."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from experiments.run.model_loading import Model
from polycom_jax import analysis, models
from polycom_jax.analysis.spectra import RANKS
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params
from polycom_jax.training.loss import Batch, documents
from polycom_jax.training.state import init_options

Tell = Callable[[str], None]


def measure(model: Model, batch: Batch, tell: Tell, *, seed: int | None = None) -> dict[str, Any]:
    """All numbers of a model on one held-out batch.

    Args:
        model: what to measure.
        batch: to run it on.
        tell: takes a line on what is being done.
        seed: of a random model of the same config, measured beside it; None: none is.

    Returns:
        `model`, and as of `numbers`: `weights`, `inside`, `gradients`; with a seed, these of the
        random model as `untrained`.
    """
    cfg = model.cfg
    found = numbers(cfg, model.params, batch, tell)
    if seed is not None:
        options = init_options(jax.default_backend())
        init = jax.jit(models.init, static_argnums=0, compiler_options=options)
        params = init(cfg, jax.random.key(seed))
        found["untrained"] = numbers(cfg, params, batch, lambda what: tell(f"untrained, {what}"))
    return {
        "model": {
            "activation": cfg.activation_name,
            "parameters": models.count_params(cfg),
            "layers": cfg.num_layers,
            "embed_dim": cfg.embed_dim,
            "hidden_width": cfg.hidden_width,
            "step": model.step,
        },
        **found,
    }


def numbers(cfg: ModelConfig, params: Params, batch: Batch, tell: Tell) -> dict[str, Any]:
    """`weights` (see `weights_of`), `inside` (see `inside_of`), `gradients`: name -> norm in each
    layer."""
    tell("singular values")
    weights = weights_of(cfg, params)
    tell("layers")
    inside = inside_of(cfg, params, batch)
    tell("gradients")
    norms = analysis.gradient_norms(cfg, params, batch)
    gradients = {name: norm.tolist() for name, norm in norms.items()}
    return {"weights": weights, "inside": inside, "gradients": gradients}


def weights_of(cfg: ModelConfig, params: Params) -> dict[str, Any]:
    """Matrix name -> shape, `ranks` by definition and `singular_values`, a row a layer.

    Of a mixture's experts, means over a layer's experts.
    """
    found = {}
    for name, stacked in analysis.weight_matrices(cfg, params).items():
        s = analysis.singular_values(stacked)
        experts = tuple(range(1, s.ndim - 1))
        ranks = {kind: f(s).mean(axis=experts).tolist() for kind, f in RANKS.items()}
        found[name] = {
            "shape": list(stacked.shape[-2:]),
            "ranks": ranks,
            "singular_values": s.mean(axis=experts).tolist(),
        }
    return found


def inside_of(cfg: ModelConfig, params: Params, batch: Batch) -> dict[str, Any]:
    """One walk through the layers, and those that sparsity takes.

    Returns:
        `places_of` the model; `cosine` and `cka` [places, places] of its states; `curves`: output
        over input, a layer each; and `sparsity_of` the model.
    """
    stream, curves = [], []

    def see(layer: analysis.LayerView) -> None:
        curve = analysis.response(cfg.activation_fn, layer.activation, layer.inputs[0])
        curves.append({name: value.tolist() for name, value in asdict(curve).items()})

    found = places_of(cfg, params, batch, see, stream.append)
    states = np.stack(stream)
    return {
        **found,
        "cosine": analysis.cosine_similarity(states).tolist(),
        "cka": analysis.linear_cka(states).tolist(),
        "curves": curves,
        **sparsity_of(cfg, params, batch),
    }


def places_of(
    cfg: ModelConfig,
    params: Params,
    batch: Batch,
    see: Callable[[analysis.LayerView], None] = lambda layer: None,
    keep_state: Callable[[np.ndarray], None] = lambda state: None,
) -> dict[str, Any]:
    """Numbers on each place along the depth.

    Args:
        cfg: the model.
        params: its parameters.
        batch: to run it on.
        see: is shown each layer.
        keep_state: is shown the residual stream before each layer and after the last, [N, D].

    Returns:
        `states`: on the residual stream before each layer and after the last; `inputs` and
        `hidden`: on the activation's first input and its output, a layer each; `attention`:
        `largest_logit` of each layer, and `token_before`, the largest share of its attention that a
        head gives to it. Tokens that are padding are left out of states and attention; experts and
        activations see them as any other.
    """
    mask = np.asarray(batch["mask"])
    _, segments = documents(cfg, batch)
    found: dict[str, Any] = {"states": [], "inputs": [], "hidden": [], "attention": []}

    def add_state(x: jax.Array) -> None:
        state = _host(x)[mask.reshape(-1)]
        found["states"].append(_of_state(state, cfg.dtype))
        keep_state(state)

    last = None
    for layer in analysis.walk(cfg, params, batch):
        see(layer)
        add_state(layer.before)
        hidden = _host(layer.hidden)
        found["inputs"].append(analysis.distribution(_host(layer.inputs[0])))
        found["hidden"].append({**analysis.distribution(hidden), **analysis.lazy_neurons(hidden)})
        seen: Any = {"segment_ids": segments, "mask": batch["mask"], "window": cfg.attention_window}
        logits = analysis.largest_logits(layer.queries, layer.keys, **seen)
        before = analysis.share_before(layer.queries, layer.keys, 1, **seen)
        found["attention"].append(
            {"largest_logit": float(logits.max()), "token_before": float(before.max())}
        )
        last = layer.after
    assert last is not None, "a model has a layer"
    add_state(last)
    return found


def _of_state(x: np.ndarray, dtype: str) -> dict[str, float]:
    """Of states in float32 that were computed in `dtype`."""
    return {
        **analysis.distribution(x),
        **analysis.massive(x),
        "mean_norm": analysis.mean_norm(x),
        **analysis.feature_ranks(x, dtype=dtype),
    }


def sparsity_of(cfg: ModelConfig, params: Params, batch: Batch) -> dict[str, Any]:
    """`sparsity`: `active_share` of each layer at PPL-1%; `sparsity_at`: the CETT that has it, and
    the perplexity's rise. Nothing of a mixture of experts."""
    if cfg.is_moe:
        return {}
    found = analysis.perplexity_sparsity(cfg, params, batch)
    return {
        "sparsity": [{"active_share": share} for share in found.active_share.tolist()],
        "sparsity_at": {"cett": found.cett, "perplexity_rise": found.perplexity_rise},
    }


def _host(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float32)


def by_block(gradients: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Norms of whole blocks ("attention", "ffn", "moe"), a layer each, from their parameters'."""
    squares: dict[str, np.ndarray] = {}
    for name, norms in gradients.items():
        parts = name.split("/")
        if parts[0] == "layers":
            squares[parts[1]] = squares.get(parts[1], 0.0) + np.square(norms)
    return {name: np.sqrt(value).tolist() for name, value in squares.items()}
