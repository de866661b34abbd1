"""One optimiser update as one compiled function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from polycom_jax._errors import InputError, require
from polycom_jax.models import ModelConfig
from polycom_jax.models.moe import of_whole_batch
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, constrain, own_mesh
from polycom_jax.training.loss import Batch, batch_nats, count_targets
from polycom_jax.training.optimizer import OptimConfig, make_optimizer, make_schedule
from polycom_jax.training.state import TrainState, abstract_state, model_specs, split_count

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class OnMesh:
    """A jitted function that is traced, lowered and called under its mesh.

    `constrain` names mesh axes alone, so the mesh has to be in force while the function is traced.
    """

    jitted: Any
    mesh: Mesh

    def __call__(self, *args: Any) -> Any:
        """Calls the function."""
        with jax.set_mesh(self.mesh):
            return self.jitted(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Lowers it for arguments, or `jax.ShapeDtypeStruct` in their place."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*args)


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
    """How the arrays of a batch lie on the mesh."""
    return NamedSharding(own_mesh(mesh, rules), rules.partition(("batch", "seq")))


def batch_rows(batch_size: int, mesh: Mesh, rules: Rules | None = None) -> Int[np.ndarray, "rows"]:
    """The rows of the global batch that this host's devices hold, ascending.

    Devices follow the network, not the hosts, so the rows need not be consecutive; and where
    `tensor` reaches beyond a host, others hold them too.

    Raises:
        InputError: the batch does not divide over the devices.
    """
    rules = rules or Rules()
    require(batch_size >= 1, f"batch_size={batch_size} must be at least 1: a batch has rows.")
    parts = split_count(mesh, rules, "batch")
    if batch_size % parts:
        raise InputError(
            f"batch_size={batch_size} does not divide over {parts} devices; "
            f"nearest: {' or '.join(str(n) for n in _near(batch_size, parts))}."
        )
    places = batch_sharding(mesh, rules).addressable_devices_indices_map((batch_size, 1))
    blocks = [(index or (slice(None),))[0] for index in places.values()]
    return np.unique(np.concatenate([np.arange(batch_size)[block] for block in blocks]))


def put_batch(
    batch: Mapping[str, np.ndarray],
    mesh: Mesh,
    rules: Rules | None = None,
    *,
    batch_size: int | None = None,
) -> Batch:
    """Makes global arrays of this host's rows, those of `batch_rows`.

    Args:
        batch: name -> rows.
        mesh: where they go.
        rules: how they are split there.
        batch_size: rows of the global batch; None: these are all.

    Raises:
        InputError: the batch does not divide over the devices, or these are not this host's rows.
    """
    rules = rules or Rules()
    own = len(batch["tokens"])
    size = own if batch_size is None else batch_size
    rows = batch_rows(size, mesh, rules)
    if own != len(rows):
        raise InputError(
            f"This host's devices hold {len(rows)} of batch_size={size} rows, and {own} were given;"
            " give those of batch_rows."
        )
    sharding = batch_sharding(mesh, rules)

    def put(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            block, *others = index or (slice(None),)
            start, stop, _ = block.indices(size)
            first = int(np.searchsorted(rows, start))
            return local[(slice(first, first + stop - start), *others)]

        return jax.make_array_from_callback((size, *local.shape[1:]), sharding, part)

    return {name: put(local) for name, local in batch.items()}


def make_train_step(
    cfg: ModelConfig,
    optim: OptimConfig,
    steps: int,
    mesh: Mesh,
    rules: Rules | None = None,
) -> OnMesh:
    """Builds `step(state, batch) -> (state, metrics)`, which donates `state`.

    The loss is sum(-log p) over the batch's unmasked targets / their number, both over all
    micro-batches and hosts, so neither the mesh nor `accumulation_steps` changes it, but for
    a mixture's `capacity_factor`, which drops tokens by device and micro-batch. A model's
    `aux` is reported for the whole batch; its entry `auxiliary_loss`, if any, is added to what is
    minimised, each micro-batch's by its share of the targets. So the gradient of the load-balance
    loss, in which the shares of experts are those of a micro-batch, depends on
    `accumulation_steps`; what is reported does not.

    Args:
        cfg: the model.
        optim: how it is updated.
        steps: length of the run, for the schedule.
        mesh: where it runs; a user's own will do, see `sharding.own_mesh`.
        rules: how it is split there.

    Returns:
        A function of a `TrainState` and a batch from `put_batch`, compiled at its first call.
        Metrics are float32 and scalars, but for vectors in the `aux`: `loss` in nats a token, NaN
        where there is none; `grad_norm` before clipping and `param_norm`, all of the state that
        came in; `learning_rate` of this update; `tokens`, the number of targets; `skipped`, 1 where
        the loss or a gradient was not finite, as by a target outside the vocabulary, or where there
        was no target: the update then is left out, parameters and optimiser stay as they were;
        `spike`, 1 where the loss stands far above those before (see `Watch`); the `aux`.

    Raises:
        InputError: when it is first called, a batch that does not divide into micro-batches.
    """
    rules = rules or Rules()
    mesh = own_mesh(mesh, rules)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(cfg, optim, mesh, rules))
    optimizer = make_optimizer(optim, model_specs(cfg, mesh, rules), steps)
    schedule = make_schedule(optim, steps)

    def objective(params: Params, micro: Batch, count: Array) -> tuple[Array, Any]:
        nats, aux = batch_nats(cfg, params, micro, rules)
        loss = nats / count
        share = count_targets(micro) / count
        aux = jax.tree.map(lambda value: value * share, aux)
        return loss + aux.get("auxiliary_loss", 0.0), {"loss": loss, **aux}

    def gradients(params: Params, micro: Batch, count: Array) -> tuple[Params, Any]:
        grads, metrics = jax.grad(objective, has_aux=True)(params, micro, count)
        return jax.lax.with_sharding_constraint(grads, shardings.params), metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        tokens = count_targets(batch)
        count = jnp.maximum(tokens, 1.0)
        if optim.accumulation_steps == 1:
            grads, metrics = gradients(state.params, batch, count)
        else:
            micro = split_batch(batch, optim.accumulation_steps, mesh, rules)
            grads, metrics = _sum_over(lambda part: gradients(state.params, part, count), micro)
            metrics = of_whole_batch(cfg, metrics)
        metrics.pop("layers", None)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & (tokens > 0)
        watch, spike = state.watch.after(metrics["loss"], good)
        metrics |= {
            # The mean over no targets is no number, and no perfect model's 0.
            "loss": jnp.where(tokens > 0, metrics["loss"], jnp.nan),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            # A skipped update is none: the optimiser's own count of them sets the schedule.
            "learning_rate": schedule(state.step - state.watch.skipped),
            "tokens": tokens,
            "skipped": 1.0 - good.astype(jnp.float32),
            "spike": spike.astype(jnp.float32),
        }
        # Selected where they are written, inside the update's own fusions.
        old = (state.params, state.opt_state)
        new = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = keep_good(good, new, old)
        return TrainState(state.step + 1, params, opt_state, watch), metrics

    jitted = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh, rules)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
    return OnMesh(jitted, mesh)


def keep_good(good: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` where `good`, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def split_batch(batch: Batch, parts: int, mesh: Mesh, rules: Rules) -> Batch:
    """[B, T] -> [parts, B / parts, T], each micro-batch made of rows that lie on every device.

    Consecutive rows would lie on a few devices only, and would have to travel.

    Raises:
        InputError: B is no multiple of parts x devices of the batch.
    """
    devices = split_count(mesh, rules, "batch")

    def one(x: Shaped[Array, "B T"]) -> Shaped[Array, "M b T"]:
        rows, length = x.shape
        check_parts(rows, parts, devices)
        x = x.reshape(devices, parts, rows // (devices * parts), length)
        x = x.swapaxes(0, 1).reshape(parts, rows // parts, length)
        return constrain(x, rules, None, "batch", "seq")

    return jax.tree.map(one, batch)


def _sum_over(f: Callable[[Batch], Any], micro: Batch) -> Any:
    """The sum of `f` over micro-batches, one at a time."""
    first = jax.tree.map(lambda x: x[0], micro)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, first))

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, f(part)), None

    total, _ = jax.lax.scan(add, zeros, micro)
    return total


def check_parts(batch_size: int, parts: int, devices: int) -> None:
    """Raises `InputError` unless a batch divides into `parts` micro-batches over `devices`."""
    if batch_size % (devices * parts):
        near = " or ".join(str(n) for n in _near(batch_size, devices * parts))
        raise InputError(
            f"batch_size={batch_size} does not divide into accumulation_steps={parts} over"
            f" {devices} devices; nearest: {near}."
        )


def _near(value: int, multiple: int) -> list[int]:
    """The positive multiples next to `value`."""
    low = value // multiple * multiple
    return [n for n in (low, low + multiple) if n > 0]
