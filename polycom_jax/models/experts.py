"""Experts on a mesh: tokens are sorted by expert, sent to where it is, multiplied, and combined.

N tokens, K choices of a token, E experts, D model, F hidden width of an expert; R rows, one for
each choice of a token. No array is as large as tokens times experts times width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from polycom_jax.kernels.checkpoint_names import remat_hidden
from polycom_jax.kernels.feed_forward import inward_names
from polycom_jax.kernels.grouped_matmul import grouped_matmul
from polycom_jax.kernels.sharded import larger_than_one, on_one_device, unsharded_features
from polycom_jax.models import exchange as ex
from polycom_jax.models.config import ModelConfig
from polycom_jax.models.layers import activation_specs, per_expert
from polycom_jax.models.permutation import combine, dispatch, inverse, permute
from polycom_jax.sharding import Rules


def run_experts(
    cfg: ModelConfig,
    params: Any,
    y: Float[Array, "N D"],
    weights: Float[Array, "N K"],
    chosen: Int[Array, "N K"],
    rules: Rules | None,
    first: Bool[Array, " N"] | None = None,
) -> tuple[Float[Array, "N D"], Int[Array, ""]]:
    """The weighted sum of the chosen experts' outputs:

        sum_j weights[n, j] * expert_chosen[n, j](y[n])
        expert(y) = act(y W_up) W_down, or act(y W_gate, y W_up) W_down where it is gated

    The weight multiplies the hidden row, so that its gradient does not need the expert's output.

    Args:
        cfg: the model.
        params: `w_up` [E, D, F], `w_down` [E, F, D], `w_gate` if gated, `activation`.
        y: tokens in the compute dtype.
        weights: float32.
        chosen: K different experts a token.
        rules: how all of it lies on the mesh of `jax.set_mesh`; None: on one device.
        first: tokens that come before all others where capacity is short; None: all alike.

    Returns:
        The sum, in the dtype of `y`, and how many choices (of tokens that are `first`) were
        dropped, over all devices: none without a capacity, or without an expert axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or on_one_device():
        return _local(cfg, params, y, weights, chosen, None)
    tokens = rules.partition(("batch", None))
    own = {name: _layout(cfg, rules, name) for name in params}
    axes = {
        f"{logical}_axis": larger_than_one(mesh, rules.partition((axis,))[0])
        for logical, axis in (("expert", "expert"), ("hidden", "mlp"), ("token", "batch"))
    }
    split = jax.shard_map(
        partial(_local, cfg, **axes),
        in_specs=(own, tokens, tokens, tokens, rules.partition(("batch",))),
        out_specs=(tokens, PartitionSpec()),
        check_vma=False,  # custom derivatives and kernels do not say over what they vary
    )
    return split(params, y, weights, chosen, first)


def _layout(cfg: ModelConfig, rules: Rules, name: str) -> Any:
    """Whole over fsdp: gathered before, as a dense layer's are."""
    if name == "activation":
        return {own: rules.partition(spec.axes) for own, spec in activation_specs(cfg).items()}
    return rules.partition(("expert", "mlp", None) if name == "w_down" else ("expert", None, "mlp"))


def _local(
    cfg: ModelConfig,
    params: Any,
    y: Float[Array, "N D"],
    weights: Float[Array, "N K"],
    chosen: Int[Array, "N K"],
    first: Bool[Array, " N"] | None,
    *,
    expert_axis: ex.AxisName | None = None,
    hidden_axis: ex.AxisName | None = None,
    token_axis: ex.AxisName | None = None,
) -> tuple[Float[Array, "N D"], Int[Array, ""]]:
    """`run_experts` of this device's tokens; the axes split experts, hidden width and tokens."""
    k, groups = cfg.moe.top_k, cfg.moe.num_experts
    with jax.named_scope("sort"):
        flat = chosen.reshape(-1).astype(jnp.int32)
        if expert_axis and first is not None and cfg.moe.capacity_factor is not None:
            flat = _by_priority(
                flat, jnp.repeat(first, k), groups // jax.lax.axis_size(expert_axis)
            )
            groups = 2 * groups
        order = jnp.argsort(flat, stable=True).astype(jnp.int32)
        undo = inverse(order)
        ids = jnp.arange(groups, dtype=jnp.int32)
        sizes = jnp.sum(flat[:, None] == ids[None, :], axis=0, dtype=jnp.int32)
        rows = dispatch(y, order, undo, k)
        weight = permute(weights.reshape(-1), order, undo)
    if expert_axis is None:
        out, dropped = _experts(cfg, params, rows, weight, sizes, hidden_axis), jnp.int32(0)
    else:
        out, dropped = _on_other_devices(cfg, params, rows, weight, sizes, expert_axis, hidden_axis)
    with jax.named_scope("combine"):
        out = combine(out, order, undo, k)
    if hidden_axis:
        out = jax.lax.psum(out, hidden_axis)
    if token_axis:
        dropped = jax.lax.psum(dropped, token_axis)
    return out, dropped


def _by_priority(expert: Int[Array, " R"], first: Bool[Array, " R"], own: int) -> Int[Array, " R"]:
    """The group of each row, in the order in which capacity is assigned.

    A device with `own` experts has twice as many groups: first the rows that come first, of each
    expert, then the others.
    """
    return expert // own * 2 * own + jnp.where(first, 0, own) + expert % own


def _on_other_devices(
    cfg: ModelConfig,
    params: Any,
    rows: Float[Array, "R D"],
    weight: Float[Array, " R"],
    sizes: Int[Array, " G"],
    expert_axis: ex.AxisName,
    hidden_axis: ex.AxisName | None,
) -> tuple[Float[Array, "R D"], Int[Array, ""]]:
    """Sorted rows through experts that other devices of the axis hold.

    They are sorted by expert, or by priority; `sizes` has the number of each group.
    """
    all_to_all = ex.exchange()
    count, experts, k = rows.shape[0], cfg.moe.num_experts, cfg.moe.top_k
    parts = jax.lax.axis_size(expert_axis)
    own = experts // parts
    size = ex.slots(count // k, k, experts, parts, cfg.moe.capacity_factor)
    with jax.named_scope("exchange"):
        plan = ex.plan_sends(sizes, expert_axis, size)
        rows = all_to_all.send(rows, plan)
        weight = all_to_all.send(weight[:, None], plan)[:, 0]
    with jax.named_scope("sort_received"):
        source, index = all_to_all.places(plan)
        ends = jnp.cumsum(plan.received, axis=1)[source]
        group = jnp.sum(index[:, None] >= ends, axis=1, dtype=jnp.int32)
        # Empty slots come last, behind all experts.
        expert = jnp.where(group < ends.shape[1], group % own, own)
        order = jnp.argsort(expert, stable=True).astype(jnp.int32)
        counts = jnp.sum(plan.received.reshape(-1, own), axis=0)
        undo = jnp.where(expert < own, inverse(order), -1)
        order = jnp.where(jnp.arange(order.size, dtype=jnp.int32) < jnp.sum(counts), order, -1)
        rows, weight = (permute(a, order, undo, False) for a in (rows, weight))
    out = _experts(cfg, params, rows, weight, counts, hidden_axis, filled=False)
    out = permute(out, undo, order, False)
    with jax.named_scope("exchange_back"):
        out = all_to_all.send_back(out, plan, count)
        dropped = jnp.sum((sizes.reshape(parts, -1) - plan.sent)[:, :own])
        # In the place of a dropped row's result may stand another row's.
        out = jnp.where(_was_sent(sizes, plan, count)[:, None], out, 0)
    return out, dropped


def _was_sent(sizes: Array, plan: ex.SendPlan, count: int) -> Array:
    """Which of the sorted rows were sent: of each expert's, the first ones."""
    ends = jnp.cumsum(sizes)
    row = jnp.arange(count, dtype=jnp.int32)
    expert = jnp.searchsorted(ends, row, side="right")
    return row - (ends - sizes)[expert] < plan.sent.reshape(-1)[expert]


def _experts(
    cfg: ModelConfig,
    params: Any,
    rows: Float[Array, "R D"],
    weight: Float[Array, " R"],
    sizes: Int[Array, " E"],
    hidden_axis: ex.AxisName | None,
    *,
    filled: bool = True,
) -> Float[Array, "R D"]:
    """Rows, sorted by expert, through this device's experts; `filled`: none is an empty slot."""
    real = jnp.arange(rows.shape[0], dtype=jnp.int32)[:, None] < jnp.sum(sizes)

    def only_real(x: Array) -> Array:
        return x if filled else jnp.where(real, x, 0)

    def product(x: Array, w: Array) -> Array:
        # Rows behind the last group are undefined, in the result and in the gradient of x.
        return only_real(grouped_matmul(only_real(x), w, sizes))

    with jax.named_scope("experts_up"):
        hidden = [product(rows, params[name]) for name in inward_names(cfg.activation_fn)]

    def down(activation: Any, w_down: Array, weight: Array, *hidden: Array) -> Array:
        with jax.named_scope("activation"), unsharded_features(hidden_axis is None):
            h = _activate(cfg, activation, hidden, sizes, hidden_axis)
            h = (h.astype(jnp.float32) * weight[:, None]).astype(h.dtype)
        with jax.named_scope("experts_down"):
            return product(h, w_down)

    down = remat_hidden(down, cfg.remat)
    return down(params["activation"], params["w_down"], weight, *hidden)


def _activate(
    cfg: ModelConfig,
    params: Any,
    hidden: Sequence[Float[Array, "R F"]],
    sizes: Int[Array, " E"],
    axis_name: ex.AxisName | None,
) -> Float[Array, "R F"]:
    apply = partial(cfg.activation_fn.apply, axis_name=axis_name)
    own = {name for name in params if per_expert(cfg, name)}
    if not own:
        return apply(params, *hidden)
    row = jnp.arange(hidden[0].shape[0], dtype=jnp.int32)
    expert = jnp.searchsorted(jnp.cumsum(sizes), row, side="right")
    expert = jnp.minimum(expert, sizes.size - 1)
    each = {name: value[expert] if name in own else value for name, value in params.items()}
    axes = {name: 0 if name in own else None for name in params}
    return jax.vmap(apply, (axes, *[0] * len(hidden)))(each, *hidden)
