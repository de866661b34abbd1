"""Checks under JAX's transformations, on a mesh, and of what a row states of itself."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from polycom_jax import params as pm
from polycom_jax._errors import InputError
from polycom_jax._operations import COUNTED_ROWS, operations, traced
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.testing.examples import F32, SAME, Example, compare, compiled, gradients

MESH_TOLERANCE = 5e-6
"""Sums of hundreds of terms of either sign, in two orders."""


def shapes_and_roles(example: Example) -> None:
    """Parameters are declared as they are made, in float32; the result has the input's shape."""
    act, width = example.act, example.width
    specs, start = act.specs_at(width), act.init(jax.random.key(0), width)
    for name, spec in specs.items():
        if (start[name].shape, start[name].dtype) != (spec.shape, jnp.float32):
            raise example.fail(
                f"shapes: {name} starts as {start[name].dtype}{list(start[name].shape)}, declared"
                f" is float32{list(spec.shape)}."
            )
        if not bool(jnp.isfinite(start[name]).all()):
            raise example.fail(f"shapes: {name} does not start at finite numbers: {start[name]}.")
    for shape in ((width,), (2, width), (2, 3, width)):
        hidden = [jnp.ones(shape, jnp.float32)] * (1 + act.gated)
        got = act.apply(start, *hidden)
        if (got.shape, got.dtype) != (shape, jnp.float32):
            raise example.fail(
                f"shapes: of float32{list(shape)} it makes {got.dtype}{list(got.shape)}."
            )
    if len({act, replace(act)}) != 1:
        raise example.fail("shapes: it is not hashable by value, so not a static argument.")


def jit_equals_eager(example: Example) -> None:
    """Compiled and eager calls agree."""
    act, params, hidden, dy = example.act, example.params(), example.hidden(), example.cotangent()
    got, wanted = compiled(act, params, hidden, dy), gradients(act, params, hidden, dy)
    compare(example, "jit", got, wanted, SAME, hidden)


def vmap_equals_a_loop(example: Example) -> None:
    """Mapped over rows and over parameters, as experts are, it is a loop."""
    act, params, hidden = example.act, example.params(), example.hidden()
    many = jax.tree.map(lambda p: jnp.stack([p, 1.5 * p, 0.5 * p, p + 0.125]), params)
    mapped = jax.vmap(act.apply)(many, *hidden)
    looped = [
        act.apply(jax.tree.map(lambda p: p[i], many), *(h[i] for h in hidden))  # noqa: B023
        for i in range(len(hidden[0]))
    ]
    compare(example, "vmap over rows and parameters", mapped, jnp.stack(looped), SAME, hidden)


def layers_stack(example: Example) -> None:
    """Its parameters stack over layers, and a scan over these is a loop."""
    act = example.act
    stacked = pm.init({"a": pm.stack(act.specs_at(example.width), 3)}, jax.random.key(0))["a"]
    one = act.init(jax.random.key(0), example.width)
    for name, value in stacked.items():
        if value.shape != (3, *one[name].shape):
            raise example.fail(
                f"stacking: three layers of {name} {list(one[name].shape)} are {list(value.shape)}."
            )
    (x, *others), dy = example.hidden(), example.cotangent()
    stacked = jax.tree.map(lambda p: jnp.stack([p, 0.75 * p, 0.5 * p]), example.params())

    def scanned(stacked: Any) -> jax.Array:
        layer = jax.checkpoint(lambda h, own: (jnp.tanh(act.apply(own, h, *others)), None))
        return jax.lax.scan(layer, x, stacked, length=3)[0]

    def looped(stacked: Any) -> jax.Array:
        h = x
        for i in range(3):
            h = jnp.tanh(act.apply(jax.tree.map(lambda p: p[i], stacked), h, *others))  # noqa: B023
        return h

    def run(f: Callable[[Any], jax.Array]) -> Any:
        y, vjp = jax.vjp(f, stacked)
        return y, vjp(dy)

    got, wanted = (jax.jit(run, static_argnums=0)(f) for f in (scanned, looped))
    # Three layers multiply what one rounding is off.
    compare(example, "a scan over layers with checkpoint", got, wanted, 16 * F32)


def forward_equals_reverse(example: Example) -> None:
    """Forward mode agrees with reverse mode."""
    act, params, hidden, dy = example.act, example.params(), example.hidden(), example.cotangent()
    at = (params, *hidden)
    along = jax.tree.map(lambda a: jnp.sin(3 * a), at)
    try:
        _, change = jax.jit(lambda p, t: jax.jvp(act.apply, p, t))(at, along)
    except TypeError as error:
        text = " ".join(str(error).split())[:160]
        raise example.fail(f"forward mode: it has no forward derivative: {text}") from error
    _, found = compiled(act, params, hidden, dy)
    forward = float(jnp.vdot(dy, change))
    reverse = float(sum(map(jnp.vdot, jax.tree.leaves(found), jax.tree.leaves(along))))
    if not abs(forward - reverse) <= 1e-5 * max(1.0, abs(reverse)):
        raise example.fail(
            f"forward mode: the derivative along a direction is {forward:.9g}, and {reverse:.9g} by"
            " reverse mode."
        )


def saves_its_arguments(example: Example) -> None:
    """The backward pass keeps the arguments, and at most a few numbers a row."""
    act, params = example.act, example.params()
    # More rows than there are numbers for a channel: beside these they are small, too.
    numbers = max((math.prod(each.shape) for each in act.parameters.values()), default=1)
    hidden = example.hidden(rows=4 * numbers)
    _, vjp = jax.vjp(act.apply, params, *hidden)
    of_rows = (*hidden[0].shape[:-1], 1)
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.shape != of_rows]
    arrays = [*jax.tree.leaves(params), *hidden]
    # What stands for channels is reshaped, and numbers of the program itself are small.
    large = [leaf for leaf in kept if leaf.size >= hidden[0].size]
    allowed = sum(array.nbytes for array in arrays if array.size >= hidden[0].size)
    if sum(leaf.nbytes for leaf in large) > allowed:
        shown = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in large)
        raise example.fail(
            f"memory: the backward pass keeps {shown}; only the arguments should be kept."
        )


def elements_stand_alone(example: Example) -> None:
    """Where it is said to be element-wise, an element of the result reads its own input alone."""
    act, params, hidden = example.act, example.params(), example.hidden()
    if act.over_rows:
        return
    before = act.apply(params, *hidden)
    after = act.apply(params, *(h.at[1, 2].add(1.5) for h in hidden))
    changed = np.argwhere(np.asarray(before != after)).tolist()
    if not all(at == [1, 2] for at in changed):
        raise example.fail(
            f"element-wise: a change of element [1, 2] changes the result at {changed[:4]}."
        )


def parts_make_the_whole(example: Example) -> None:
    """Parts of rows, each with its own channels' parameters, give the parts of the result, as where
    experts' widths are split; what reads rows is told the axis that splits them."""
    act, example = example.act, example.wider(2)
    declared = act.parameters
    odd = any(p.per == "group" and p.groups % 2 for p in declared.values())
    if odd or (act.over_rows and not act.row.takes_axis):
        return
    params, hidden = example.params(), example.hidden()

    def halves(array: jax.Array) -> jax.Array:
        return jnp.stack(jnp.split(array, 2, axis=-1))

    own = {name: halves(p) if declared[name].by_channel else p for name, p in params.items()}
    axes = {name: 0 if declared[name].by_channel else None for name in params}
    split = jax.vmap(
        lambda params, *parts: act.apply(params, *parts, axis_name="parts"),
        in_axes=(axes, *[0] * len(hidden)),
        axis_name="parts",
    )
    got = jnp.concatenate(list(split(own, *map(halves, hidden))), axis=-1)
    check = "two parts of the channels, each by itself"
    # A mean over parts adds up in another order.
    compare(example, check, got, act.apply(params, *hidden), MESH_TOLERANCE, hidden)


def rows_stand_alone(example: Example) -> None:
    """A row of the result reads its own row alone: others are other tokens, later ones, too."""
    act, params = example.act, example.params()
    hidden = [h.reshape(2, 3, example.width) for h in example.hidden(rows=6)]
    apply = jax.jit(act.apply)
    before = np.asarray(apply(params, *hidden), np.float64)
    for row, change in product(np.ndindex(2, 3), (1.5, -40.0)):
        after = np.asarray(apply(params, *(h.at[row].add(change) for h in hidden)), np.float64)
        off = np.abs(after - before)
        off[row] = 0
        if not np.max(off) <= SAME * np.max(np.abs(before)):
            at = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
            raise example.fail(
                f"rows: a change of row {[int(i) for i in row]} of an array {list(off.shape)}"
                f" changes the result at {list(at)} from {before[at]:.9g} to {after[at]:.9g}; it"
                " may read the last axis alone, as elsewhere on it are other tokens and examples."
            )


def sharded_equals_whole(example: Example) -> None:
    """Split by rows and width over all devices that there are, parameters by their logical axes."""
    count = len(jax.devices())
    tensor = next(n for n in (4, 2, 1) if count % n == 0)
    groups = [p.groups for p in example.act.parameters.values() if p.per == "group"]
    tensor = tensor if all(g % tensor == 0 for g in groups) else 1
    mesh = make_mesh(data=count // tensor, tensor=tensor)
    example, rows = example.wider(4), count * (1 if count > 4 else 4)
    params, hidden, dy = example.params(), example.hidden(rows=rows), example.cotangent(rows=rows)
    split = NamedSharding(mesh, PartitionSpec("data", "tensor"))
    own = pm.shardings(example.act.specs_at(example.width), mesh, Rules())
    wanted = compiled(example.act, params, hidden, dy)
    got = compiled(
        example.act,
        jax.device_put(params, own),
        jax.device_put(hidden, split),
        jax.device_put(dy, split),
    )
    where = f"a mesh of data={count // tensor}, tensor={tensor}"
    if not got[0].sharding.is_equivalent_to(split, 2):
        raise example.fail(f"sharding: on {where} the result is {got[0].sharding}, not {split}.")
    check, terms = f"sharding: on {where}", _terms(example, params, hidden, dy)
    compare(example, check, got, wanted, MESH_TOLERANCE, hidden, sizes=terms)


def _terms(example: Example, params: Any, hidden: Sequence[jax.Array], dy: jax.Array) -> list[Any]:
    """Of each result of `gradients`, the size of what it is a sum of; 0 where it is no long sum.

    A parameter's gradient is one over all elements, which may nearly cancel: its rounding, which
    depends on their order, is relative to the terms.
    """
    changes = jax.jacfwd(example.act.apply)(params, *hidden) if params else {}

    def size(change: jax.Array) -> float:
        weight = dy.reshape(*dy.shape, *[1] * (change.ndim - dy.ndim))
        return float(jnp.max(jnp.sum(jnp.abs(weight * change), axis=(0, 1))))

    return [0.0, *(size(changes[name]) for name in sorted(params)), *[0.0] * len(hidden)]


def flops_are_counted(example: Example) -> None:
    """Stated FLOPs are the operations of the traced program."""
    act = example.act
    if "implementation" in act.reads:  # other versions have the same arithmetic, in other words
        act = replace(act, options=replace(act.options, implementation="xla"))
    x = jax.ShapeDtypeStruct((COUNTED_ROWS, example.width), jnp.float32)
    traced_program = traced(
        act.apply, pm.abstract(act.specs_at(example.width)), *[x] * (1 + act.gated)
    )
    try:
        found = operations(traced_program, x.size)
    except InputError:
        if act.row.flops is None:
            raise
        return  # stated, as they cannot be counted
    if act.flops != len(found):
        shown = ", ".join(name if n == 1 else f"{n} {name}" for name, n in Counter(found).items())
        if act.row.flops is None:
            raise example.fail(
                f"flops: counted are {act.flops} operations an element, and {len(found)} at width"
                f" {example.width}: {shown}. Where they grow with the width, state flops= of the"
                " width that is used, and leave this check out."
            )
        raise example.fail(
            f"flops: stated are {act.flops} operations an element, its program has {len(found)}:"
            f" {shown}."
        )


TRANSFORMATIONS: Mapping[str, Callable[[Example], None]] = {
    "shapes_and_roles": shapes_and_roles,
    "elements_stand_alone": elements_stand_alone,
    "parts_make_the_whole": parts_make_the_whole,
    "rows_stand_alone": rows_stand_alone,
    "flops_are_counted": flops_are_counted,
    "jit_equals_eager": jit_equals_eager,
    "vmap_equals_a_loop": vmap_equals_a_loop,
    "layers_stack": layers_stack,
    "forward_equals_reverse": forward_equals_reverse,
    "saves_its_arguments": saves_its_arguments,
    "sharded_equals_whole": sharded_equals_whole,
}
