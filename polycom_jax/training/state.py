"""What a training run carries from step to step, and how it lies on a mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PyTree

from polycom_jax import models
from polycom_jax import params as pm
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params, Specs
from polycom_jax.sharding import Rules, num_parts, own_mesh
from polycom_jax.training.loss_scale import LOSS_STATS, LossScaling
from polycom_jax.training.loss_stats import LossStats
from polycom_jax.training.optimizer import OptimConfig, make_optimizer


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs.

    There is no random state: whatever is random in a run is a function of (seed, step).

    Attributes:
        step: number of updates done, those that were skipped included, int32.
        params: the model's parameters.
        opt_state: of the optimizer; moments lie on the mesh as their parameters do.
        watch: updates that were skipped, the losses that a spike stands out from, and the scale of
            the loss where it has one (`ScaledLossStats`).
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    watch: LossStats


def start_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    loss_scaling: LossScaling = "none",
) -> TrainState:
    """The state before the first step of `make_train_step`, of any tree of arrays.

    Its arrays are copies, which the step may be given for good: `params` stay the caller's.
    `Checkpoints` keeps it as it keeps those of the library's models:

        step, state = make_train_step(loss_fn, optimizer), start_state(params, optimizer)
        with Checkpoints(folder, run_metadata={"width": 16}) as checkpoints:
            if checkpoints.latest_step() is not None:
                state = checkpoints.restore(abstract_state(params, optimizer))
            for batch in batches(after=int(state.step)):
                state, metrics = step(state, batch)
                checkpoints.save(int(state.step), state)

    Args:
        params: any tree of arrays.
        optimizer: the one that the step is made of.
        loss_scaling: "dynamic" for a loss that computes in float16, see `OptimConfig`.
    """
    return jax.tree.map(jnp.copy, _first(params, optimizer, loss_scaling))


def split_count(mesh: Mesh, rules: Rules, axis: str) -> int:
    """Into how many parts the rules split logical axis `axis` on this mesh."""
    return num_parts(rules.partition((axis,))[0], own_mesh(mesh, rules))


def model_specs(cfg: ModelConfig, mesh: Mesh | None = None, rules: Rules | None = None) -> Specs:
    """The model's parameters with the vocabulary padded so that it splits evenly on `mesh`."""
    if mesh is None:
        return models.specs(cfg)
    return models.specs(cfg, tensor=split_count(mesh, rules or Rules(), "vocab"))


def map_mirrored(f: Callable[[Any, Any], Any], tree: Any, by_param: Any) -> Any:
    """Maps `f(leaf, entry)` over `tree`, where `entry` is what `by_param` holds for the parameter
    that the leaf belongs to: itself, or a moment of it; None for all other leaves (counters).

    A leaf belongs to the parameter whose path ends its own: `.opt_state[1].mu['embed']` to
    `['embed']`. Shapes are not looked at, since different parameters may share one.
    """
    entries = dict(jax.tree_util.tree_flatten_with_path(by_param)[0])

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        ends = (path[start:] for start in range(len(path)))
        return f(leaf, next((entries[end] for end in ends if end in entries), None))

    return jax.tree_util.tree_map_with_path(one, tree)


@overload
def abstract_state(
    cfg: ModelConfig, optim: OptimConfig, mesh: Mesh | None = None, rules: Rules | None = None
) -> TrainState: ...
@overload
def abstract_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    /,
    *,
    loss_scaling: LossScaling = "none",
) -> TrainState: ...
def abstract_state(
    cfg: Any,
    optim: Any,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    *,
    loss_scaling: LossScaling = "none",
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`, with shardings where a mesh is given.

    It is what restoring (`Checkpoints.restore`) and ahead-of-time compilation want.

    Args:
        cfg: one of the library's models; or the parameters of another one, arrays or
            `jax.ShapeDtypeStruct`, on whose mesh or device the state then lies.
        optim: its `OptimConfig`; or the other one's optax transformation.
        mesh: where the library's model will lie; None: not stated.
        rules: how.
        loss_scaling: of the other one, as in `start_state`.

    Raises:
        InputError: a dimension does not divide over its mesh axis.
    """
    if not isinstance(cfg, ModelConfig):
        first = partial(_first, optimizer=optim, loss_scaling=loss_scaling)
        tree = jax.eval_shape(first, cfg)
        return _placed(tree, jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), cfg))
    specs = model_specs(cfg, mesh, rules)
    tree = jax.eval_shape(partial(_init, specs, optim), jax.random.key(0))
    return tree if mesh is None else _placed(tree, pm.shardings(specs, mesh, rules or Rules()))


def _placed(tree: TrainState, by_param: Any) -> TrainState:
    """Each leaf where its parameter lies, sums over an axis of one as its other axes do; what
    belongs to none, everywhere on the same devices."""
    known = next(iter(jax.tree.leaves(by_param)), None)
    other = (
        NamedSharding(known.mesh, PartitionSpec()) if isinstance(known, NamedSharding) else known
    )

    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree.params)}
    whole = jax.tree_util.tree_map_with_path(
        lambda path, sharding: _Lies(shapes[path], sharding), by_param
    )

    def one(leaf: jax.ShapeDtypeStruct, lies: _Lies | None) -> jax.ShapeDtypeStruct:
        sharding = other if lies is None else lies.part(leaf.shape, other)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return map_mirrored(one, tree, whole)


@dataclass(frozen=True)
class _Lies:
    """How a parameter of this shape lies."""

    shape: tuple[int, ...]
    sharding: Any

    def part(self, shape: tuple[int, ...], other: Any) -> Any:
        """How what belongs to it lies: all of it, a sum over one axis, or something else."""
        if shape == self.shape or not isinstance(self.sharding, NamedSharding):
            return self.sharding
        spec = [*self.sharding.spec] + [None] * (len(self.shape) - len(self.sharding.spec))
        for axis in range(len(spec)):
            if self.shape[:axis] + self.shape[axis + 1 :] == shape:
                left = PartitionSpec(*spec[:axis], *spec[axis + 1 :])
                return NamedSharding(self.sharding.mesh, left)
        return other


def make_init(
    cfg: ModelConfig, optim: OptimConfig, mesh: Mesh, rules: Rules | None = None
) -> Callable[[Key[Array, ""]], TrainState]:
    """Builds the compiled function from a key to the state before the first step.

    Every array is made where it will lie, never in one place.

    Raises:
        InputError: a dimension does not divide over its mesh axis.
    """
    abstract = abstract_state(cfg, optim, mesh, rules)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = partial(_init, model_specs(cfg, mesh, rules), optim)
    options = init_options(mesh.devices.flat[0].platform)
    return jax.jit(init, out_shardings=shardings, compiler_options=options)


def init_options(platform: str) -> dict[str, Any] | None:
    """XLA's options for a program that draws initial values; with others, last digits may differ.

    On a CPU, LLVM spends most of the time to the first step on random bits that are drawn once; at
    its first level it is much faster, and the bits are the same.
    """
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None


def make_state(
    cfg: ModelConfig,
    optim: OptimConfig,
    key: Key[Array, ""],
    mesh: Mesh,
    rules: Rules | None = None,
) -> TrainState:
    """The state before the first step, see `make_init`."""
    return make_init(cfg, optim, mesh, rules)(key)


def state_from(
    cfg: ModelConfig, optim: OptimConfig, params: Params, mesh: Mesh, rules: Rules | None = None
) -> TrainState:
    """The state before the first step of a run that begins with these parameters.

    Args:
        cfg: the model.
        optim: how it will be updated.
        params: its parameters, vocabulary padded for `mesh` as `model_specs` says; donated.
        mesh: where the state will lie.
        rules: how.
    """
    abstract = abstract_state(cfg, optim, mesh, rules)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    begin = partial(_begin, model_specs(cfg, mesh, rules), optim)
    return jax.jit(begin, out_shardings=shardings, donate_argnums=0)(params)


def _init(specs: Specs, optim: OptimConfig, key: Key[Array, ""]) -> TrainState:
    return _begin(specs, optim, pm.init(specs, key))


def _begin(specs: Specs, optim: OptimConfig, params: Params) -> TrainState:
    # The run's length sets the schedule, which the initial state does not depend on.
    return _first(params, make_optimizer(optim, specs, steps=1), optim.loss_scaling)


def _first(
    params: Params, optimizer: optax.GradientTransformation, loss_scaling: LossScaling
) -> TrainState:
    watch = LOSS_STATS[loss_scaling].start()
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), watch)
