"""One optimiser update as one compiled function, of any loss and any optax transformation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Shaped

from polycom_jax._errors import InputError, require
from polycom_jax.params import Params
from polycom_jax.sharding import num_parts
from polycom_jax.training.batches import near
from polycom_jax.training.loss_stats import LossStats
from polycom_jax.training.state import TrainState

Tree = TypeVar("Tree")

LossFn = Callable[[Params, Any], Any]
"""(params, batch) -> loss, or (loss, aux): a scalar mean over the batch's rows, and a tree of
arrays, by name if it is a mapping."""

OWN_METRICS = frozenset(
    {"grad_norm", "param_norm", "learning_rate", "skipped", "spike", "loss_scale"}
)
"""What a step reports itself, so no `aux` may be called so."""


@dataclass(frozen=True)
class SummedLoss:
    """A loss whose parts, one a micro-batch, add up to that of the whole batch.

    Attributes:
        normalizer: batch -> what each part needs of the whole batch: its number of targets, say.
        part: (params, micro-batch, that) -> (part of what is minimised, parts of the metrics). Of
            these, `loss` is what is reported, and what has to be finite for the update to be made.
        finish: (sums of the metrics, number of parts) -> metrics.
    """

    normalizer: Callable[[Any], Any]
    part: Callable[[Params, Any, Any], tuple[Array, dict[str, Any]]]
    finish: Callable[[dict[str, Any], int], dict[str, Any]] = lambda sums, parts: sums


@dataclass(frozen=True)
class Layout:
    """How a step's arguments lie on a mesh.

    Attributes:
        mesh: in force while the step is traced.
        state: a `NamedSharding` for each leaf of the `TrainState`.
        batch: that of every array of the batch; its first dimension is that of rows.
    """

    mesh: Mesh
    state: Any
    batch: NamedSharding


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


class Step(Protocol):
    """A training step: `step(state, batch) -> (state, metrics)`."""

    def __call__(self, *args: Any) -> tuple[TrainState, dict[str, Array]]:
        """Makes an update."""
        ...

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Lowers it for arguments, or `jax.ShapeDtypeStruct` in their place."""
        ...


def make_train_step(
    loss_fn: LossFn | SummedLoss,
    optimizer: optax.GradientTransformation,
    *,
    accumulation_steps: int = 1,
    schedule: optax.Schedule | None = None,
    update_args: Sequence[str] = (),
    layout: Layout | None = None,
) -> Step:
    """Builds `step(state, batch) -> (state, metrics)`, which donates `state`.

    Parameters are any tree of arrays (Flax, Equinox's `eqx.partition`, dictionaries); the state
    before the first step is `start_state(params, optimizer)`. For the models of this library, see
    `make_model_step`.

        step, state = make_train_step(loss_fn, optimizer), start_state(params, optimizer)
        for batch in batches:
            state, metrics = step(state, batch)

    Args:
        loss_fn: what is minimised. A plain function's loss and aux are means over rows, so those of
            micro-batches are averaged; where rows weigh differently, give a `SummedLoss`.
        optimizer: how parameters are updated.
        accumulation_steps: the batch is processed in this many parts, one after another.
        schedule: the rate that the optimizer follows, to be reported as `learning_rate`.
        update_args: names of further arguments of the step, which go to `optimizer.update`.
        layout: how state and batch lie on a mesh; None: as they are given.

    Returns:
        A function compiled at its first call. Metrics: `loss`; `grad_norm` before the optimizer and
        `param_norm`, all of the state that came in; `skipped`, 1 where loss or gradient were not
        finite: the update then is left out, and parameters and optimizer stay as they were;
        `spike`, 1 where the loss stands far above those before (see `LossStats`); `loss_scale`,
        where the state has one; the aux (under `aux`, unless it is a mapping).

    Raises:
        InputError: accumulation_steps below 1; when it is first called, a loss that is no scalar,
            an aux named as a metric of the step, or a batch that does not divide.
    """
    require(
        callable(loss_fn) or isinstance(loss_fn, SummedLoss),
        f"make_train_step takes a function of (params, batch), not a {type(loss_fn).__name__}; for"
        " a ModelConfig there is make_model_step.",
    )
    require(accumulation_steps >= 1, f"accumulation_steps={accumulation_steps} must be at least 1.")
    loss = loss_fn if isinstance(loss_fn, SummedLoss) else _mean(loss_fn, accumulation_steps)
    gradients = _gradients(loss, accumulation_steps, layout)
    update_of = optax.with_extra_args_support(optimizer).update

    def step(state: TrainState, batch: Any, *given: Any) -> tuple[TrainState, dict[str, Any]]:
        grads, metrics = gradients(state.params, batch, state.watch)
        extra = dict(zip(update_args, given, strict=True))
        updates, opt_state = update_of(grads, state.opt_state, state.params, **extra)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        watch, spike = state.watch.after(metrics["loss"], good)
        metrics |= {
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            "skipped": 1.0 - good.astype(jnp.float32),
            "spike": spike.astype(jnp.float32),
            **state.watch.metrics(),
        }
        if schedule is not None:
            # A skipped update is none: the optimiser's own count of them sets the schedule.
            metrics["learning_rate"] = schedule(state.step - state.watch.skipped)
        # Selected where they are written, inside the update's own fusions.
        old = (state.params, state.opt_state)
        new = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = keep_good(good, new, old)
        return TrainState(state.step + 1, params, opt_state, watch), metrics

    return _compiled(step, layout, len(update_args))


def keep_good(good: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` where `good`, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def _compiled(step: Callable[..., Any], layout: Layout | None, further: int) -> Step:
    if layout is None:
        return jax.jit(step, donate_argnums=0)
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    jitted = jax.jit(
        step,
        in_shardings=(layout.state, layout.batch, *[everywhere] * further),
        out_shardings=(layout.state, everywhere),
        donate_argnums=0,
    )
    return OnMesh(jitted, layout.mesh)


def _mean(loss_fn: LossFn, parts: int) -> SummedLoss:
    """A mean over rows as a sum over micro-batches of as many rows each."""

    def part(params: Params, micro: Any, normalizer: None) -> tuple[Array, dict[str, Any]]:
        found = loss_fn(params, micro)
        loss, aux = found if isinstance(found, tuple) else (found, {})
        require(
            jnp.shape(loss) == (),
            f"the loss must be one number, and has the shape {jnp.shape(loss)}; take its mean.",
        )
        aux = aux if isinstance(aux, Mapping) else {"aux": aux}
        taken = {"loss", *OWN_METRICS} & aux.keys()
        require(
            not taken,
            f"the loss's aux has {', '.join(sorted(taken))}, which the step reports itself; give it"
            " another name.",
        )
        metrics = {"loss": loss, **aux}
        return (loss, metrics) if parts == 1 else jax.tree.map(lambda x: x / parts, (loss, metrics))

    return SummedLoss(lambda batch: None, part)


def _gradients(
    loss: SummedLoss, parts: int, layout: Layout | None
) -> Callable[[Params, Any, LossStats], tuple[Params, dict[str, Any]]]:
    """Builds (params, batch, what scales the loss) -> (gradients, metrics)."""

    def of_part(
        params: Params, micro: Any, normalizer: Any, watch: LossStats
    ) -> tuple[Params, dict[str, Any]]:
        def minimised(params: Params) -> tuple[Array, dict[str, Any]]:
            value, metrics = loss.part(params, micro, normalizer)
            return watch.scaled(value), metrics

        grads, metrics = jax.grad(minimised, has_aux=True)(params)
        if layout is not None:
            grads = jax.lax.with_sharding_constraint(grads, layout.state.params)
        return grads, metrics

    def gradients(params: Params, batch: Any, watch: LossStats) -> tuple[Params, dict[str, Any]]:
        normalizer = loss.normalizer(batch)
        if parts == 1:
            grads, metrics = of_part(params, batch, normalizer, watch)
        else:
            micro = split_batch(batch, parts, None if layout is None else layout.batch)
            grads, metrics = _sum_over(lambda one: of_part(params, one, normalizer, watch), micro)
        return watch.unscaled(grads), loss.finish(metrics, parts)

    return gradients


def split_batch(batch: Any, parts: int, sharding: NamedSharding | None = None) -> Any:
    """[B, ...] -> [parts, B / parts, ...], each micro-batch made of rows that lie on every device.

    Consecutive rows would lie on a few devices only, and would have to travel.

    Raises:
        InputError: B is no multiple of parts x devices of the batch.
    """
    spec = PartitionSpec() if sharding is None else sharding.spec
    devices = num_parts(spec[0], sharding.mesh) if sharding is not None and len(spec) else 1

    def one(x: Shaped[Array, "B ..."]) -> Shaped[Array, "M b ..."]:
        require(
            jnp.ndim(x) > 0, "every array of a batch that is split has rows, and one is a number."
        )
        rows, *rest = x.shape
        check_parts(rows, parts, devices)
        x = x.reshape(devices, parts, rows // (devices * parts), *rest)
        x = x.swapaxes(0, 1).reshape(parts, rows // parts, *rest)
        if sharding is None:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, *spec))

    return jax.tree.map(one, batch)


def _sum_over(f: Callable[[Any], Any], micro: Any) -> Any:
    """The sum of `f` over micro-batches, one at a time."""
    first = jax.tree.map(lambda x: x[0], micro)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, first))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, f(part)), None

    total, _ = jax.lax.scan(add, zeros, micro)
    return total


def check_parts(batch_size: int, parts: int, devices: int) -> None:
    """Raises `InputError` unless a batch divides into `parts` micro-batches over `devices`."""
    if batch_size % (devices * parts):
        sizes = " or ".join(str(n) for n in near(batch_size, devices * parts))
        raise InputError(
            f"batch_size={batch_size} does not divide into accumulation_steps={parts} over"
            f" {devices} devices; nearest: {sizes}."
        )
