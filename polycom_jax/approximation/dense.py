"""Explicit networks as ordinary parameter trees, to train on from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from polycom_jax._errors import require
from polycom_jax.activations.inputs import work_dtype
from polycom_jax.activations.polynomial import horner
from polycom_jax.approximation.combine import DENSE_LIMIT, dense_bytes, flatten
from polycom_jax.approximation.evaluation import check_dtype
from polycom_jax.approximation.network import Affine, Network

Params = dict[str, Any]


def to_dense(net: Network, *, dtype: Any = None, limit: int = DENSE_LIMIT) -> Params:
    """The network's numbers as a tree of dense arrays, zeros written out; see `apply_dense`.

    Args:
        net: any network.
        dtype: of the arrays; by default float64 under `jax.enable_x64(True)`, else float32.
        limit: the most bytes that the tree may have.

    Returns:
        {"layers": [{"weights" [in, out], "biases" [out], "coeffs" [out, order + 1]}, ...],
        "readout": {"weights", "biases"}}.

    Raises:
        InputError: more than `limit` bytes, nothing is allocated then; or a dtype that cannot hold
            the network's numbers, or does not do for it (see `evaluation.check_dtype`).
    """
    kind = jnp.dtype(float if dtype is None else dtype)
    kind = jax.dtypes.canonicalize_dtype(kind)
    needed = dense_bytes(net, kind.itemsize)
    require(
        needed <= limit,
        f"the dense form needs {needed / 2**20:,.0f} MiB as {kind.name}; the limit is"
        f" {limit / 2**20:,.0f} MiB. Take a smaller N or a smaller dtype, or raise `limit`.",
    )
    check_dtype(net, kind)
    flat = flatten(net, limit=max(limit, dense_bytes(net)))
    return {
        "layers": [
            {**_matrices(layer.affine, kind), "coeffs": _held(layer.coeffs[0], kind)}
            for layer in flat.layers
        ],
        "readout": _matrices(flat.readout, kind),
    }


def dense_wires(net: Network, *, limit: int = DENSE_LIMIT) -> Params:
    """Which numbers of `to_dense`'s tree stand in the network: the same tree of bools.

    Their count is `net.size`. A weight that stands there may be 0; all others are, and stay so in
    training from a network that keeps its wires.

    Args:
        net: any network.
        limit: as for `to_dense`.

    Raises:
        InputError: more than `limit` bytes in `to_dense`'s float64 form.
    """
    flat = flatten(net, limit=limit)

    def wires(through: Affine) -> Params:
        return {"weights": jnp.asarray(through.wires.T), "biases": jnp.asarray(through.biased)}

    return {
        "layers": [
            {**wires(layer.affine), "coeffs": jnp.asarray(layer.coeffs[0] != 0)}
            for layer in flat.layers
        ],
        "readout": wires(flat.readout),
    }


def apply_dense(params: Params, x: Float[ArrayLike, "*S I"]) -> Float[Array, "*S O"]:
    """Values of the network with these parameters, differentiable in both arguments.

    relu'(0) = 0, as in the library's activations. The dtype is what `x` and the parameters promote
    to; narrower ones than float32 compute in float32 and are rounded once.
    """
    points = jnp.asarray(x)
    dtype = jnp.result_type(points, params["readout"]["weights"])
    h = points.astype(work_dtype(dtype))
    params = jax.tree.map(lambda leaf: leaf.astype(h.dtype), params)
    for layer in params["layers"]:
        z = jax.nn.relu(_affine(layer, h))
        rows = [c.reshape((1,) * (z.ndim - 1) + c.shape) for c in layer["coeffs"].T]
        h = horner(z, rows)
    return _affine(params["readout"], h).astype(dtype)


def _affine(params: Params, h: Array) -> Array:
    bias = params["biases"].reshape((1,) * (h.ndim - 1) + (-1,))
    return jnp.matmul(h, params["weights"], precision=jax.lax.Precision.HIGHEST) + bias


def _matrices(through: Affine, dtype: np.dtype) -> Params:
    return {
        "weights": _held(through.weights[0].T, dtype),
        "biases": _held(through.biases[0], dtype),
    }


def _held(numbers: np.ndarray, dtype: np.dtype) -> Array:
    largest = float(np.abs(numbers).max(initial=0))
    require(
        largest <= float(jnp.finfo(dtype).max),
        f"{dtype.name} does not hold the network's {largest:.3g}; take a wider dtype.",
    )
    return jnp.asarray(numbers, dtype)
