"""Checks of values and derivatives: against float64, in every dtype, at every magnitude."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polycom_jax.table import Activation
from polycom_jax.testing.examples import (
    F32,
    Example,
    compare,
    compiled,
    float64,
    gradients,
    names,
    place,
)

Leaves = dict[str, np.ndarray]

HALF = (jnp.bfloat16, jnp.float16)

SIZES = (0.0, 1e-40, 1e-20, 1e-5, 6.4, 60.0, 1e3, 6e4, 1e6, 1e12, 1e19, 1e30, 1e35)
"""Magnitudes of inputs: squares, cubes and sixth powers overflow. To the largest float32 is left
what a product with a parameter, or a sum over a row, takes."""

GATED = 1e17
"""Largest gate and up of one size: their product, times one of them, is finite."""

APART = (
    *((1e20, 0.0), (0.0, 1e20), (1e20, 1e-10), (1e-10, 1e20), (1e20, 1e-20), (1e-20, 1e20)),
    *((1e15, 1e-15), (1e-15, 1e15), (1e19, 1.0), (1.0, 1e19), (1e4, 1e-4), (1e-4, 1e4)),
)
"""Sizes of gate and up whose products are small while powers of the larger one overflow."""

FAR, FAR_PARTS = 40.0, 4
"""How far out values and derivatives are tried, and in how many arrays."""

SLOPE = 2e-5
"""What a grid leaves open of the largest derivative, beside the digits that bounds are stated in,
relative to the larger of one and the bound."""

HEADROOM = 100
"""A result that is as near to the largest number as this may overflow on the way."""


def values_and_gradients(example: Example) -> None:
    """Value and gradients in float32, eager and compiled, against float64 and its differences."""
    params, hidden, dy = example.params(), example.hidden(), example.cotangent()
    wanted = _exact(example, params, hidden, dy)
    for how, run in (("eager", gradients), ("compiled", compiled)):
        got = run(example.act, params, hidden, dy)
        compare(example, f"values and gradients, {how}, against float64", got, wanted, F32, hidden)


def _exact(example: Example, params: Any, hidden: Any, dy: Any) -> Any:
    f, dy = example.evaluate, float64(dy)
    leaves = {**float64(params), **{f"input {i}": float64(h) for i, h in enumerate(hidden)}}

    def value(leaves: Leaves) -> np.ndarray:
        inputs = [leaves[name] for name in leaves if name.startswith("input ")]
        return f({name: leaves[name] for name in params}, *inputs)

    slopes = numeric_gradients(lambda own: float(np.sum(dy * value(own))), leaves)
    own = {name: slopes[name] for name in params}
    return value(leaves), (own, *(slopes[name] for name in leaves if name not in params))


def numeric_gradients(f: Callable[[Leaves], float], leaves: Leaves) -> Leaves:
    """d f / d leaves by central differences of two steps, extrapolated: error about 1e-11."""

    def slope(array: np.ndarray, at: Any, step: float) -> float:
        kept = array[at]
        array[at] = kept + step
        high = f(leaves)
        array[at] = kept - step
        low = f(leaves)
        array[at] = kept
        return (high - low) / (2 * step)

    found = {}
    leaves = {name: np.array(leaf, np.float64) for name, leaf in leaves.items()}
    for name, array in leaves.items():
        gradient = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            gradient[at] = (4 * slope(array, at, 5e-4) - slope(array, at, 1e-3)) / 3
        found[name] = gradient
    return found


def one_rounding(example: Example) -> None:
    """float16 and bfloat16 stay, and are the float32 result rounded once; gradients likewise."""
    example = example.wider(4)
    params = example.params()
    for dtype in HALF:
        hidden, dy = example.hidden(dtype, 8), example.cotangent(dtype, 8)
        wide = [h.astype(jnp.float32) for h in hidden]
        y, (own, *dhidden) = compiled(example.act, params, hidden, dy)
        wide_y, (_, *dwide) = compiled(example.act, params, wide, dy.astype(jnp.float32))
        name = jnp.dtype(dtype).name
        for label, leaf in own.items():
            if leaf.dtype != params[label].dtype:
                raise example.fail(f"dtypes: the gradient of {label} is {leaf.dtype} for {name}.")
        labels = [label for label in names(example.act) if label.split()[-1] not in params]
        for label, got, wanted in zip(labels, [y, *dhidden], [wide_y, *dwide], strict=True):
            _check_rounding(example, label, got, wanted, dtype, wide)


def _check_rounding(
    example: Example, label: str, got: Any, wanted: Any, dtype: Any, hidden: Any
) -> None:
    name = jnp.dtype(dtype).name
    if got.dtype != dtype:
        raise example.fail(f"dtypes: {label} is {got.dtype} for inputs of {name}.")
    info, got, wanted = jnp.finfo(dtype), float64(got), float64(wanted)
    allowed = float(info.eps) / 2 * np.abs(wanted) + F32 * np.max(np.abs(wanted))
    off = np.abs(got - wanted) - allowed - float(info.tiny) * float(info.eps)
    if not np.all(off <= 0):
        at = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
        raise example.fail(
            f"one rounding: in {name} {label} is {got[at]:.9g}, and {wanted[at]:.9g} in float32,"
            f" more than one rounding away{place(hidden, at)}."
        )


def always_finite(example: Example) -> None:
    """No NaN or infinity in value or gradients where float64 has a number that the dtype holds."""
    params = example.params()
    spreads = _spreads(example)
    rows = len(spreads[0])
    for dtype in (jnp.float32, *HALF):
        top = min(float(jnp.finfo(dtype).max), example.largest)
        base = (float64(h) for h in example.hidden(rows=rows))
        hidden = [
            jnp.asarray(np.clip(h * spread, -top, top), dtype)
            for h, spread in zip(base, spreads, strict=True)
        ]
        dy = example.cotangent(dtype, rows)
        got = compiled(example.act, params, hidden, dy)
        with jax.enable_x64(True):
            wanted = compiled(example.act, *_wide((params, hidden, dy)))
        # A parameter's gradient sums over all rows: its own size says little.
        for label, a, b in zip(
            names(example.act), jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
        ):
            _check_finite(example, label, a, float64(b), hidden)


def _spreads(example: Example) -> list[np.ndarray]:
    """Of each input, the size of each element: rows of one size, rows of few large elements among
    small ones, and, of two inputs, rows whose sizes are far apart."""
    few = np.where(np.arange(example.width) % 5 == 0, 1, 1e-6)
    mixed = np.where(np.arange(2 * len(SIZES))[:, None] % 2 == 0, 1, few[None])
    alike = mixed * np.repeat(SIZES, 2)[:, None]
    if not example.act.gated:
        return [alike]
    alike = np.minimum(alike, GATED)
    return [
        np.concatenate([alike, np.broadcast_to(np.array(sizes)[:, None], (len(APART), few.size))])
        for sizes in zip(*APART, strict=True)
    ]


def _check_finite(example: Example, label: str, got: Any, wanted: np.ndarray, hidden: Any) -> None:
    limit = float(jnp.finfo(got.dtype).max) / HEADROOM
    bad = ~np.isfinite(float64(got)) & (np.abs(wanted) < limit)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise example.fail(
            f"finite: in {got.dtype} {label} is {float64(got)[at]} and should be"
            f" {wanted[at]:.6g}{place(hidden, at)}; keep exponents and powers of what is not"
            " selected in range, as in jnp.where(x > 0, f(x), g(jnp.minimum(x, 0)))."
        )
    if np.isnan(wanted).any():
        at = tuple(int(i) for i in np.argwhere(np.isnan(wanted))[0])
        raise example.fail(
            f"finite: {label} is NaN in float64, too{place(hidden, at)}; the activation must have a"
            " number for every finite input: bound what a root, a logarithm or a power is taken of."
        )


def second_derivatives(example: Example) -> None:
    """Hessian-vector products in float32 against differences of float64 gradients; of what is
    element-wise those of its inputs far out, too, where the terms of a derivative may cancel."""
    product = jax.jit(partial(_second, example.act))
    near = example.hidden()
    _compare_second(example, [(near, *_both_second(example, product, near, of_params=True))])
    if not example.act.over_rows:
        far = []
        for hidden in far_out(example):
            # Along a parameter, and of its gradient, powers of x stand beside what has vanished.
            got, wanted = _both_second(example, product, hidden, of_params=False)
            far.append((hidden, got[1:], wanted[1:]))
        _compare_second(example, far)


def _compare_second(example: Example, tried: Sequence[tuple[Any, Any, Any]]) -> None:
    """Relative to the largest of all."""
    every = [jax.tree.leaves(wanted) for _, _, wanted in tried]
    sizes = [float(np.max(np.abs(leaves))) for leaves in zip(*every, strict=True)]
    labels = [label.replace("gradient", "second derivative") for label in names(example.act)[1:]]
    labels = labels[len(labels) - len(sizes) :]
    for hidden, got, wanted in tried:
        check = "second derivatives against float64"
        compare(example, check, got, wanted, 1e-4, hidden, labels=labels, sizes=sizes)


def far_out(example: Example, which: int = 0) -> list[list[jax.Array]]:
    """A grid of that input from -FAR to FAR, in arrays of the shape of `hidden`."""
    hidden = example.hidden()
    far, count = min(FAR, example.largest), FAR_PARTS * hidden[which].size
    # Shifted, as no kink should lie on it.
    grid = far * (2 * (np.arange(count) + 0.37) / count - 1)
    parts = grid.reshape(-1, FAR_PARTS).T.reshape(FAR_PARTS, *hidden[which].shape)
    return [
        [*hidden[:which], jnp.asarray(part, jnp.float32), *hidden[which + 1 :]] for part in parts
    ]


def _second(act: Activation, at: Any, along: Any, dy: Any) -> Any:
    def gradient(*at: Any) -> Any:
        return gradients(act, at[0], at[1:], dy.astype(at[1].dtype))[1]

    return jax.jvp(gradient, at, along)[1]


def _both_second(
    example: Example, product: Callable[..., Any], hidden: Sequence[Any], *, of_params: bool
) -> tuple[Any, Any]:
    """Hessian-vector products, along parameters, too, or inputs alone; and what they should be."""
    dy, at = example.cotangent(), (example.params(), *hidden)
    own, *along = jax.tree.map(lambda a: jnp.sin(3 * a), at)
    along = (own if of_params else jax.tree.map(jnp.zeros_like, own), *along)
    got = product(at, along, dy)
    with jax.enable_x64(True):
        wide, direction, wide_dy = _wide((at, along, dy))
        step = 1e-5

        def shifted(sign: float) -> Any:
            moved = jax.tree.map(lambda a, d: a + sign * step * d, wide, direction)
            return compiled(example.act, moved[0], moved[1:], wide_dy)[1]

        wanted = jax.tree.map(lambda a, b: (a - b) / (2 * step), shifted(1), shifted(-1))
        return got, float64(wanted)


def _wide(tree: Any) -> Any:
    """Every leaf as a JAX array of float64, which `jax.enable_x64` lets there be."""
    return jax.tree.map(jnp.asarray, float64(tree))


def stated_slopes(example: Example) -> None:
    """The stated bounds of the derivative hold, and are reached, as far as a fine grid tells."""
    bounds = example.act.row.slopes
    if bounds is None:
        return
    x, slope = _slopes(example)
    at, low, high = np.argmax(slope), float(np.min(slope)), float(np.max(slope))
    room = [SLOPE * max(1.0, abs(b)) for b in bounds]
    held = bounds[0] - room[0] <= low and high <= bounds[1] + room[1]
    if not held:
        raise example.fail(
            f"slopes: the derivative goes from {low:.6g} to {high:.6g} (the latter at x ="
            f" {x[at]:.6g}), stated are {bounds[0]:.6g} to {bounds[1]:.6g}."
        )
    far = [
        np.isfinite(bound) and abs(bound - found) > r
        for bound, found, r in zip(bounds, (low, high), room, strict=True)
    ]
    if any(far) or (np.isinf(bounds[1]) and high < 100) or (np.isinf(bounds[0]) and low > -100):
        raise example.fail(
            f"slopes: stated are {bounds[0]:.6g} to {bounds[1]:.6g}, and the derivative goes only"
            f" from {low:.6g} to {high:.6g}."
        )


def _slopes(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and the derivative of each channel there, in float64."""
    act, start = example.act, example.act.init(jax.random.key(0), example.width)
    far = 10.0 ** np.arange(1.25, 4.5, 0.25)
    grid = np.concatenate([-far[::-1], np.linspace(-12, 12, 12001), far])
    x = np.repeat(grid[:, None], example.width, axis=1)
    with jax.enable_x64(True):
        hidden = [jnp.asarray(x), jnp.ones(x.shape)][: 1 + act.gated]
        slope = float64(compiled(act, _wide(start), hidden, jnp.ones(x.shape))[1][1])
    return x.ravel(), slope.ravel()


NUMBERS: Mapping[str, Callable[[Example], None]] = {
    "values_and_gradients": values_and_gradients,
    "one_rounding": one_rounding,
    "always_finite": always_finite,
    "second_derivatives": second_derivatives,
    "stated_slopes": stated_slopes,
}
