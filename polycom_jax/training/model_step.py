"""The training step of the library's own models: one case of `make_train_step`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from polycom_jax import params as pm
from polycom_jax.models import ModelConfig
from polycom_jax.models.moe import of_whole_batch
from polycom_jax.params import Params, Specs
from polycom_jax.sharding import Rules, own_mesh
from polycom_jax.training.batches import batch_sharding
from polycom_jax.training.loss import Batch, batch_nats, count_targets
from polycom_jax.training.loss_scale import check_loss_scaling
from polycom_jax.training.optimizer import OptimConfig, frozen_roles, make_optimizer, make_schedule
from polycom_jax.training.state import abstract_state, model_specs
from polycom_jax.training.step import Layout, OnMesh, Step, SummedLoss, make_train_step


def model_loss(cfg: ModelConfig, rules: Rules | None = None, z_loss: float = 0.0) -> SummedLoss:
    """The loss of a model: sum(-log p) over the batch's unmasked targets / their number.

    Both are over all micro-batches and processes, so neither mesh nor number of micro-batches
    changes it, but for a mixture's `capacity_factor`, which drops tokens by device and micro-batch.
    A model's `aux` is reported for the whole batch; its entry `auxiliary_loss`, if any, is added to
    what is minimised, each micro-batch's by its share of the targets. So the gradient of the
    load-balance loss, in which the shares of experts are those of a micro-batch, depends on the
    number of micro-batches; what is reported does not.

    Args:
        cfg: the model; its `loss_chunk` says how many logits exist at a time.
        rules: how arrays are split over the mesh in force; None: not at all.
        z_loss: coefficient of the mean of log(sum(exp(logits)))^2, see `OptimConfig`.

    Returns:
        The loss, whose metrics are `loss` in nats a token (NaN where there is no target), `tokens`,
        the number of targets, the `aux` and, where there is one, the `z_loss` that is minimised
        besides `loss`.
    """

    def part(params: Params, micro: Batch, tokens: Array) -> tuple[Array, dict[str, Any]]:
        count = jnp.maximum(tokens, 1.0)
        nats, aux = batch_nats(cfg, params, micro, rules, z_loss)
        loss, targets = nats / count, count_targets(micro)
        share = targets / count
        aux = jax.tree.map(lambda value: value * share, aux)
        # The mean over no targets is no number, and no perfect model's 0.
        entropy = loss - aux["z_loss"] if z_loss else loss
        reported = jnp.where(tokens > 0, entropy, jnp.nan)
        metrics = {"loss": reported, "tokens": targets, **aux}
        return loss + aux.get("auxiliary_loss", 0.0), metrics

    def finish(metrics: dict[str, Any], parts: int) -> dict[str, Any]:
        metrics = metrics if parts == 1 else of_whole_batch(cfg, metrics)
        return {name: value for name, value in metrics.items() if name != "layers"}

    return SummedLoss(count_targets, part, finish)


def make_model_step(
    cfg: ModelConfig, optim: OptimConfig, steps: int | None, mesh: Mesh, rules: Rules | None = None
) -> OnMesh:
    """`make_train_step` of `model_loss` and `make_optimizer`: what all programs train with.

    Args:
        cfg: the model.
        optim: how it is updated.
        steps: length of the run, for the schedule. None: the step takes the learning rate as a
            third argument, so that a rate from outside compiles nothing anew.
        mesh: where it runs; a user's own will do, see `sharding.own_mesh`.
        rules: how it is split there.

    Returns:
        A function of a `TrainState` and a batch from `put_batch`, compiled at its first call.
        Metrics are float32 and scalars, but for vectors in the `aux`: those of `make_train_step`
        and `model_loss`. An update without a finite loss, as by a target outside the vocabulary, is
        left out; so is one without targets.

    Raises:
        InputError: float16 without `loss_scaling`; when it is first called, a batch that does not
            divide into micro-batches.
    """
    check_loss_scaling(cfg.dtype, optim.loss_scaling)
    rules = rules or Rules()
    mesh = own_mesh(mesh, rules)
    specs = model_specs(cfg, mesh, rules)
    state = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(cfg, optim, mesh, rules))
    step: Step = make_train_step(
        _without_gradient(model_loss(cfg, rules, optim.z_loss), specs, frozen_roles(optim)),
        make_optimizer(optim, specs, steps),
        accumulation_steps=optim.accumulation_steps,
        schedule=None if steps is None else make_schedule(optim, steps),
        update_args=() if steps is not None else ("learning_rate",),
        layout=Layout(mesh, state, batch_sharding(mesh, rules)),
    )
    assert isinstance(step, OnMesh)
    return step


def _without_gradient(loss: SummedLoss, specs: Specs, roles: frozenset[str]) -> SummedLoss:
    """The loss as a function of the other roles' parameters alone: XLA drops the backward pass of
    these."""
    if not roles:
        return loss

    def held(params: Params) -> Params:
        return pm.map_specs(
            lambda spec, p: jax.lax.stop_gradient(p) if spec.role in roles else p, specs, params
        )

    def part(params: Params, micro: Any, normalizer: Any) -> tuple[Array, dict[str, Any]]:
        return loss.part(held(params), micro, normalizer)

    return SummedLoss(loss.normalizer, part, loss.finish)
