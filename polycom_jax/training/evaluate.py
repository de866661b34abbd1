"""The loss on held-out text, every byte of it counted."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from polycom_jax import params as pm
from polycom_jax._errors import require
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, own_mesh
from polycom_jax.training.batches import batch_sharding
from polycom_jax.training.loss import Batch, batch_nats, count_targets
from polycom_jax.training.state import model_specs
from polycom_jax.training.step import OnMesh


def make_eval_step(cfg: ModelConfig, mesh: Mesh, rules: Rules | None = None) -> OnMesh:
    """Builds `eval_step(params, batch) -> {"nats": sum of -log p, "targets": their number}`.

    Both are float32 scalars over the batch's unmasked targets; the batch is from `put_batch`.
    """
    rules = rules or Rules()
    mesh = own_mesh(mesh, rules)

    def eval_step(params: Params, batch: Batch) -> dict[str, Array]:
        nats, _ = batch_nats(cfg, params, batch, rules)
        return {"nats": nats, "targets": count_targets(batch)}

    return on_mesh(eval_step, cfg, mesh, rules)


def on_mesh(
    f: Callable[[Params, Batch], Any], cfg: ModelConfig, mesh: Mesh, rules: Rules
) -> OnMesh:
    """`f` of the model's parameters and a batch, jitted; every process holds the full result."""
    layouts = pm.shardings(model_specs(cfg, mesh, rules), mesh, rules), batch_sharding(mesh, rules)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return OnMesh(jax.jit(f, in_shardings=layouts, out_shardings=everywhere), mesh)


def evaluate(
    eval_step: Callable[[Params, Any], Mapping[str, Any]],
    params: Params,
    batches: Iterable[Any],
    num_bytes: int,
) -> dict[str, float]:
    """Runs over all batches and sums in float64 on the host.

    Bits a byte = nats / ln 2 / num_bytes does not depend on the tokenizer, as long as each byte of
    the text is predicted exactly once; nats a token does.

    Args:
        eval_step: from `make_eval_step`; or, of another model, a jitted function of (params, batch)
            that gives the same two sums by name.
        params: the model's parameters.
        batches: what `eval_step` takes (of `put_batch`), holding each target of the text once.
        num_bytes: UTF-8 bytes of that text.

    Returns:
        `loss` in nats a token, `bits_per_byte`, `tokens`.

    Raises:
        InputError: no targets, or no bytes.
    """
    nats = targets = 0.0
    for sums in one_behind(eval_step(params, batch) for batch in batches):
        nats += float(sums["nats"])
        targets += float(sums["targets"])
    require(
        targets > 0 and num_bytes > 0,
        f"The held-out text has {targets:.0f} targets and {num_bytes} bytes: nothing to evaluate.",
    )
    return {
        "loss": nats / targets,
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "tokens": targets,
    }


def one_behind(results: Iterable[Any]) -> Iterator[Any]:
    """Yields each result once the next one is under way: host and device work at the same time."""
    last = None
    for result in results:
        if last is not None:
            yield last
        last = result
    if last is not None:
        yield last
