"""PolyNorm and its two relatives as TPU kernels (Pallas, lowered by Mosaic).

A block of whole rows is read once and written once; inside, scale, moments and the polynomial are
three passes over VMEM. Rows that do not fit VMEM, and rows split over devices, take two kernels
forward and two backward: sums of a tile, united in XLA over tiles and devices, then the polynomial;
x (and dy) are read twice there. `tpu_plan` holds the block shapes.

A `custom_vjp` that saves the inputs: forward mode and second derivatives, which
`implementation="xla"` has, are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.kernels.poly_norm import moments, tpu_kernels
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.tpu_plan import Plan
from polycom_jax.kernels.restrictions import reverse_only
from polycom_jax.kernels.sharded import match_varying
from polycom_jax.kernels.tpu_blocks import LANES
from polycom_jax.kernels.tpu_call import in_lanes
from polycom_jax.sharding import MeshAxes


@dataclass(frozen=True)
class _Static:
    form: Form
    axis_name: MeshAxes
    interpret: bool


def _operation(**form: bool) -> Callable[..., Array]:
    def run(
        *arrays: Array, eps: float, axis_name: MeshAxes = None, interpret: bool = False
    ) -> Array:
        """As in `api`; `interpret` runs the kernels as XLA operations, for tests."""
        *inputs, coeffs = arrays
        static = _Static(Form(coeffs.size - 1, eps, **form), axis_name, interpret)
        shape = inputs[0].shape
        flat = [x.reshape(-1, shape[-1]) for x in inputs]
        arguments = reverse_only("poly_norm", "pallas_tpu", *match_varying(coeffs, *flat))
        return _compiled(static, *arguments).reshape(shape)

    return run


poly_norm, poly_relu_norm = _operation(), _operation(relu=True)
poly_norm_glu = _operation(gated=True)


def _value(static: _Static, coeffs: Array, *inputs: Float[Array, "N F"]) -> Float[Array, "N F"]:
    if inputs[0].shape[0] == 0:
        return inputs[0]
    plan = Plan.of(static.form, inputs[0])
    whole = plan.whole_forward()
    if whole is not None and static.axis_name is None:
        body = partial(tpu_kernels.whole_forward, static.form, plan.width)
        return whole(body, in_lanes(coeffs), *inputs, interpret=static.interpret)[0]
    _, sums = _sums(static, plan, inputs[:1], backward=False)
    inv_rms = moments.inv_rms(
        sums, moments.full_width(plan.width, static.axis_name), static.form.eps
    )
    row_stats = _side_by_side(sums.scale, moments.value_terms(inv_rms, _scalars(coeffs)))
    body = partial(tpu_kernels.part_forward, static.form)
    return plan.part_forward()(body, row_stats, *inputs, interpret=static.interpret)[0]


def _forward(static: _Static, coeffs: Array, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _value(static, coeffs, *inputs), (coeffs, *inputs)


def _backward(static: _Static, saved: Sequence[Array], dy: Array) -> tuple[Array, ...]:
    coeffs, *inputs = saved
    if dy.shape[0] == 0:
        return jnp.zeros_like(coeffs), *(dy for _ in inputs)
    plan = Plan.of(static.form, dy)
    split = static.axis_name is not None or plan.whole_backward() is None
    rule = _parts_backward if split else _whole_backward
    dcoeffs, *grads = rule(static, plan, coeffs, dy, *inputs)
    return dcoeffs.astype(coeffs.dtype), *grads


_rows = jax.custom_vjp(_value, nondiff_argnums=(0,))
_rows.defvjp(_forward, _backward)
_compiled = jax.jit(_rows, static_argnums=0)


def _whole_backward(
    static: _Static, plan: Plan, coeffs: Array, *arrays: Array
) -> tuple[Array, ...]:
    call = plan.whole_backward()
    assert call is not None
    body = partial(tpu_kernels.whole_backward, static.form, plan.count, plan.width)
    *grads, by_block = call(body, in_lanes(coeffs), *arrays, interpret=static.interpret)
    return jnp.sum(by_block[:, : coeffs.size, 0], axis=0), *grads


def _parts_backward(
    static: _Static, plan: Plan, coeffs: Array, *arrays: Array
) -> tuple[Array, ...]:
    own, sums = _sums(static, plan, arrays, backward=True)
    width = moments.full_width(plan.width, static.axis_name)
    inv_rms = moments.inv_rms(sums, width, static.form.eps)
    direct, through_norm = moments.slope_terms(inv_rms, _scalars(coeffs), sums, width)
    values = moments.value_terms(inv_rms, _scalars(coeffs)) if static.form.gated else []
    row_stats = _side_by_side(sums.scale, [*direct, *through_norm, *values])
    body = partial(tpu_kernels.part_backward, static.form)
    grads = plan.part_backward()(body, row_stats, *arrays, interpret=static.interpret)
    # This shard's part of the coefficients' gradient: where they enter it, parts are added up.
    return jnp.stack([jnp.sum(c) for c in moments.coefficient_terms(inv_rms, own)]), *grads


def _sums(
    static: _Static, plan: Plan, arrays: Sequence[Array], *, backward: bool
) -> tuple[moments.Sums, moments.Sums]:
    """Sums over this shard's part of each row, and over whole rows; both at the rows' scale."""
    body = partial(tpu_kernels.part_sums, static.form, plan.width, backward)
    (packed,) = plan.part_sums(backward=backward)(body, *arrays, interpret=static.interpret)
    own = moments.united(moments.Sums.unpacked(packed, static.form.order, backward=backward))
    return moments.over_shards(own, static.axis_name)


def _scalars(coeffs: Array) -> list[Array]:
    return list(coeffs.astype(jnp.float32))


def _side_by_side(scale: Float[Array, "N 1"], terms: Sequence[Array]) -> Float[Array, "N K"]:
    """One lane for the scale and for each term, padded to whole registers."""
    columns = [scale, *(jnp.broadcast_to(t, scale.shape) for t in terms)]
    columns += [jnp.zeros((scale.shape[0], -len(columns) % LANES), jnp.float32)]
    return jnp.concatenate(columns, axis=1)
