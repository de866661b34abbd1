"""Values and derivatives of explicit networks."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from polycom_jax._errors import InputError, require
from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import horner
from polycom_jax.approximation.network import Affine, Network

CHUNK_UNITS = 2**22
"""How many units are computed at once: points times width."""


def evaluate(net: Network, x: Float[ArrayLike, "*S I"]) -> Float[Array, "*S O"]:
    """Values of the network, jitted.

    Derivatives of every order and in both modes are those of the piecewise polynomial, and at a
    kink the mean of both sides (relu'(0) = 1/2). So pairs of units that make a polynomial together,
    such as relu(x) - relu(-x), also have its derivatives everywhere.

    Args:
        net: the network.
        x: points, the last axis over the `net.inputs` variables.

    Returns:
        Values in the dtype of `x`: float64 under `jax.enable_x64(True)`, where arrays of NumPy keep
        their precision, and float32 otherwise. Narrower ones compute in float32 and are rounded
        once.

    Raises:
        InputError: points with another number of coordinates, or a dtype that does not do for the
            network (see `check_dtype`).
    """
    points, dtype = _points(net, x)
    y = _evaluate(net, points.reshape(-1, net.inputs))
    return y.reshape(*points.shape[:-1], net.outputs).astype(dtype)


def evaluate_copies(
    net: Network, x: Float[ArrayLike, "P I"], copies: Int[ArrayLike, "P K"]
) -> Float[Array, "P O"]:
    """Values of the network at each point, summed over the named copies of its block alone.

    This is `evaluate` wherever all other copies vanish, at the cost of K copies for a point. Of
    a `taylor_network`, the copies that do not vanish are named by `taylor.active_copies`.

    Args:
        net: a network with the same number of copies in every hidden layer.
        x: points.
        copies: indices of different copies, a row for each point.

    Raises:
        InputError: layers with different numbers of copies, or as for `evaluate`.
    """
    counts = {layer.affine.copies for layer in net.layers}
    require(len(counts) == 1, f"the layers must be copies alike in number, not {sorted(counts)}.")
    points, dtype = _points(net, x)
    return _evaluate_copies(net, points, jnp.asarray(copies)).astype(dtype)


def _points(net: Network, x: Float[ArrayLike, "*S I"]) -> tuple[Float[Array, "*S I"], Any]:
    """The points in the dtype that is computed in, and that of the values."""
    points = floating_points(x, net.inputs)
    dtype = work_dtype(points.dtype)
    check_dtype(net, dtype)
    return points.astype(dtype), points.dtype


def floating_points(x: Float[ArrayLike, "*S I"], inputs: int) -> Float[Array, "*S I"]:
    """The points of a network with so many inputs, as floating numbers.

    Raises:
        InputError: points with another number of coordinates.
    """
    points = jnp.asarray(x)
    if not jnp.issubdtype(points.dtype, jnp.floating):
        points = points.astype(float)
    require(
        points.ndim >= 1 and points.shape[-1] == inputs,
        f"points of shape {points.shape} must have a last axis of {inputs}, the network's number of"
        " inputs.",
    )
    return points


def check_dtype(net: Network, dtype: Any) -> None:
    """Raises `InputError` where results in `dtype` would not be the network's.

    That is where units cancel so far that less than three digits stay (`Network.condition`), and
    where the cells of a grid are not distinguished: copies of a block differ in their first biases,
    and if those are rounded by more than a sixteenth of the way to the next cell, bumps no longer
    add up to 1.
    """
    dtype = jnp.dtype(dtype)
    require(
        net.condition == 1 or net.condition * float(jnp.finfo(dtype).eps) <= 2**-10,
        f"{dtype.name} keeps less than three digits of this network, whose terms are up to"
        f" {net.condition:.2g} times as large as their sum: take a lower order, scales further"
        " apart or a larger step when it is built, or a wider dtype.",
    )
    first = net.layers[0].affine if net.layers else net.readout
    biases = first.biases
    if not isinstance(biases, np.ndarray) or len(biases) == 1:  # traced or trained; no copies
        return
    rounding = np.abs(biases.astype(dtype).astype(np.float64) - biases)
    if not rounding.any():
        return
    steps = np.diff(np.sort(biases, axis=0), axis=0)
    step = np.where(steps > 0, steps, np.inf).min(axis=0)
    lost = rounding > step / 16
    if lost.any():
        held = np.where(lost, np.abs(biases) / step, np.inf).min()
        raise InputError(
            f"{dtype.name} does not distinguish the cells of this network, whose first"
            f" biases reach {np.abs(biases).max():,.0f}: take at most N={int(held) - 1} cells on an"
            " axis, or a wider dtype."
        )


@jax.jit
def _evaluate(net: Network, x: Float[Array, "P I"]) -> Float[Array, "P O"]:
    return _in_chunks(partial(_forward, net), x, CHUNK_UNITS // max(net.width, 1))


@jax.jit
def _evaluate_copies(
    net: Network, x: Float[Array, "P I"], copies: Int[Array, "P K"]
) -> Float[Array, "P O"]:
    def at_point(x: Float[Array, " I"], chosen: Int[Array, " K"]) -> Float[Array, " O"]:
        return _forward(_restrict(net, chosen), x[None])[0]

    width = copies.shape[1] * max(layer.coeffs.shape[1] for layer in net.layers)
    return _in_chunks(lambda xs: jax.vmap(at_point)(*xs), (x, copies), CHUNK_UNITS // width)


def _in_chunks(f: Callable[[Any], Array], xs: Any, chunk: int) -> Array:
    """`f` over the leading axis, `chunk` rows at a time."""
    rows = jax.tree.leaves(xs)[0].shape[0]
    if rows <= chunk:
        return f(xs)

    def row(x: Any) -> Array:
        return f(jax.tree.map(lambda leaf: leaf[None], x))[0]

    return jax.lax.map(row, xs, batch_size=max(chunk, 1))


def _forward(net: Network, x: Float[Array, "P I"]) -> Float[Array, "P O"]:
    h = x[:, None, :]
    for layer in net.layers:
        coeffs = jnp.asarray(layer.coeffs, x.dtype)[None]
        z = _apply(layer.affine, h)
        h = coeffs[..., 0] + truncated_polynomial(z, coeffs[..., 1:])
    return _apply(net.readout, h)[:, 0]


def _apply(through: Affine, h: Float[Array, "P S I"]) -> Float[Array, "P C O"]:
    weights, biases = jnp.asarray(through.weights, h.dtype), jnp.asarray(through.biases, h.dtype)
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if weights.shape[0] == 1 or through.sources == 1:
        if through.copies == 1:
            h = h.sum(1, keepdims=True)
        if weights.shape[0] == 1:
            z = product("psi,oi->pso", h, weights[0])
        else:
            z = product("pi,coi->pco", h[:, 0], weights)
    elif through.copies == 1:
        z = product("psi,soi->po", h, weights)[:, None]
    else:
        z = product("pci,coi->pco", h, weights)
    return z + biases[None]


def _restrict(net: Network, chosen: Int[Array, " K"]) -> Network:
    """The network of the chosen copies alone."""
    count = chosen.shape[0]

    def pick(array: np.ndarray) -> Array:
        stored = jnp.asarray(array)
        return stored if stored.shape[0] == 1 else stored[chosen]

    def pick_affine(through: Affine) -> Affine:
        sources = through.sources if through.sources == 1 else count
        copies = through.copies if through.copies == 1 else count
        weights, biases = pick(through.weights), pick(through.biases)
        return replace(through, weights=weights, biases=biases, sources=sources, copies=copies)

    layers = tuple(
        replace(layer, affine=pick_affine(layer.affine), coeffs=pick(layer.coeffs))
        for layer in net.layers
    )
    return replace(net, layers=layers, readout=pick_affine(net.readout))


@jax.custom_jvp
def truncated_polynomial(
    z: Float[Array, "P C O"], coeffs: Float[Array, "1 C O R"]
) -> Float[Array, "P C O"]:
    """sum_{i>=1} coeffs[..., i-1] relu(z)^i, whose derivative at 0 is the mean of both sides."""
    powers = [coeffs[..., i] for i in range(coeffs.shape[-1])]
    y = jax.nn.relu(z)
    return y * horner(y, powers)


@truncated_polynomial.defjvp
def _(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Float[Array, "P C O"], Float[Array, "P C O"]]:
    (z, coeffs), (dz, dcoeffs) = primals, tangents
    step = jax.lax.stop_gradient(jnp.heaviside(z, 0.5))
    slope = coeffs[..., 0] * step
    if coeffs.shape[-1] > 1:
        times = jnp.arange(2, coeffs.shape[-1] + 1, dtype=z.dtype)
        slope = slope + truncated_polynomial(z, coeffs[..., 1:] * times.reshape(1, 1, 1, -1))
    return truncated_polynomial(z, coeffs), dz * slope + truncated_polynomial(z, dcoeffs)
