"""Networks made of networks. What comes out is a plain feed-forward network again: the affine map
between two of them is one matrix, so composing adds depths and nothing else."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise

import numpy as np

from polycom_jax._errors import require
from polycom_jax.approximation.network import Affine, Layer, Network, feed_forward, linear

DENSE_LIMIT = 2**30
"""Bytes above which a network is not written out without copies."""


def compose(outer: Network, inner: Network) -> Network:
    """x -> outer(inner(x)), of depth `outer.depth + inner.depth`.

    Raises:
        InputError: numbers of outputs and inputs that differ, or two networks made of copies whose
            dense form is above `DENSE_LIMIT`.
    """
    require(
        inner.outputs == outer.inputs,
        f"the outer network reads {outer.inputs} numbers, the inner one gives {inner.outputs}.",
    )
    first = outer.layers[0].affine if outer.layers else outer.readout
    if first.copies > 1 and inner.readout.sources > 1:
        return compose(outer, flatten(inner))
    smoothness = min(outer.smoothness, inner.smoothness)
    condition = max(outer.condition, inner.condition)
    joint = _chain(first, inner.readout)
    if not outer.layers:
        return Network(inner.layers, joint, smoothness, condition)
    middle = replace(outer.layers[0], affine=joint)
    layers = (*inner.layers, middle, *outer.layers[1:])
    return Network(layers, outer.readout, smoothness, condition)


def _chain(outer: Affine, inner: Affine) -> Affine:
    """The map outer(inner(x)), where inner makes one block and one of the two has no copies.

    Without copies, what cancels does not exist; a block has what any of its copies may need.
    """
    weights = np.matmul(outer.weights, inner.weights)
    biases = outer.biases + outer.weights @ inner.biases[0]
    wires = (outer.wires.astype(int) @ inner.wires.astype(int)) > 0
    biased = outer.biased | (outer.wires & inner.biased).any(axis=1)
    if inner.sources == outer.copies == 1:
        wires, biased = wires & (weights[0] != 0), biased & (biases[0] != 0)
    return Affine(weights, biases, wires, biased, inner.sources, outer.copies)


def identity(width: int) -> Network:
    """x -> x on R^width: relu(x) - relu(-x), two units for each variable."""
    eye = np.eye(width)
    units = np.tile([0.0, 1.0], (2 * width, 1))
    both = np.concatenate([eye, -eye])
    return feed_forward([both, both.T], [None, None], [units], smoothness=math.inf)


def deepen(net: Network, depth: int) -> Network:
    """The same function with `depth` hidden layers, its outputs carried on by `identity`.

    Raises:
        InputError: a depth below the network's.
    """
    require(depth >= net.depth, f"depth={depth} is below the network's, {net.depth}.")
    return reduce(
        lambda made, _: compose(identity(net.outputs), made), range(net.depth, depth), net
    )


def block_diagonal(*nets: Network) -> Network:
    """(x, y, ...) -> (f(x), g(y), ...): each network reads variables of its own.

    Shallower ones are deepened. Networks with the same numbers of copies are joined copy by copy;
    others are written out first.

    Raises:
        InputError: no networks, or dense forms above `DENSE_LIMIT`.
    """
    require(len(nets) > 0, "block_diagonal() needs a network.")
    if len(nets) == 1:
        return nets[0]
    depth = max(net.depth for net in nets)
    nets = tuple(deepen(net, depth) for net in nets)
    if len({tuple(layer.affine.copies for layer in net.layers) for net in nets}) > 1:
        nets = tuple(flatten(net) for net in nets)
    layers = tuple(_join_layers([net.layers[k] for net in nets]) for k in range(depth))
    readout = _join([net.readout for net in nets])
    smoothness = min(net.smoothness for net in nets)
    return Network(layers, readout, smoothness, max(net.condition for net in nets))


def parallel(*nets: Network) -> Network:
    """x -> (f(x), g(x), ...): all networks read the same variables. See `block_diagonal`.

    Raises:
        InputError: networks with different numbers of inputs.
    """
    inputs = {net.inputs for net in nets}
    require(len(inputs) == 1, f"parallel networks must read the same variables, not {inputs}.")
    count = inputs.pop()
    return compose(block_diagonal(*nets), linear(np.tile(np.eye(count), (len(nets), 1))))


def with_units(net: Network, units: Sequence[Network]) -> Network:
    """The network with its units replaced by networks.

    `units[k]` maps the inputs of hidden layer k's units to their outputs, by any number of layers.
    """
    made = linear(np.eye(net.inputs))
    for layer, instead in zip(net.layers, units, strict=True):
        made = compose(instead, compose(Network((), layer.affine, math.inf), made))
    return compose(Network((), net.readout, math.inf, net.condition), made)


def _join_layers(layers: Sequence[Layer]) -> Layer:
    order = max(layer.coeffs.shape[-1] for layer in layers)
    tables = [
        np.pad(layer.coeffs, ((0, 0), (0, 0), (0, order - layer.coeffs.shape[-1])))
        for layer in layers
    ]
    return Layer(_join([layer.affine for layer in layers]), _side_by_side(tables))


def _join(maps: Sequence[Affine]) -> Affine:
    return Affine(
        weights=_diagonal([m.weights for m in maps]),
        biases=_side_by_side([m.biases for m in maps]),
        wires=_diagonal([m.wires[None] for m in maps])[0],
        biased=np.concatenate([m.biased for m in maps]),
        sources=maps[0].sources,
        copies=maps[0].copies,
    )


def _side_by_side(arrays: Sequence[np.ndarray]) -> np.ndarray:
    lead = max(array.shape[0] for array in arrays)
    return np.concatenate([np.broadcast_to(a, (lead, *a.shape[1:])) for a in arrays], axis=1)


def _diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Block-diagonal matrices, for each leading index."""
    lead = max(block.shape[0] for block in blocks)
    rows, columns = (sum(block.shape[k] for block in blocks) for k in (1, 2))
    out = np.zeros((lead, rows, columns), blocks[0].dtype)
    i = j = 0
    for block in blocks:
        out[:, i : i + block.shape[1], j : j + block.shape[2]] = block
        i, j = i + block.shape[1], j + block.shape[2]
    return out


def dense_bytes(net: Network, itemsize: int = 8) -> int:
    """Bytes of the network's matrices, biases and coefficients when written out without copies."""
    units = [net.inputs, *(layer.units for layer in net.layers), net.outputs]
    matrices = sum((read + 1) * made for read, made in pairwise(units))
    return itemsize * (matrices + sum(n.units * n.coeffs.shape[-1] for n in net.layers))


def flatten(net: Network, limit: int = DENSE_LIMIT) -> Network:
    """The same network as one block, of the same size.

    Raises:
        InputError: more than `limit` bytes.
    """
    if all(layer.affine.copies == 1 for layer in net.layers):
        return net
    needed = dense_bytes(net)
    require(
        needed <= limit,
        f"written out without copies, the network needs {needed / 2**20:,.0f} MiB; the limit is"
        f" {limit / 2**20:,.0f} MiB. Take a smaller N, or raise the limit.",
    )
    layers = tuple(
        Layer(_flatten(layer.affine), _rows(layer.coeffs, layer.affine.copies))
        for layer in net.layers
    )
    return Network(layers, _flatten(net.readout), net.smoothness, net.condition)


def _flatten(through: Affine) -> Affine:
    copies, sources = through.copies, through.sources
    return Affine(
        weights=_written_out(through.weights, copies, sources),
        biases=_rows(through.biases[..., None], copies)[..., 0],
        wires=_written_out(through.wires[None], copies, sources)[0],
        biased=np.tile(through.biased, copies),
    )


def _rows(array: np.ndarray, copies: int) -> np.ndarray:
    """[1 or copies, units, k] to [1, copies * units, k]."""
    full = np.broadcast_to(array, (copies, *array.shape[1:]))
    return full.reshape(1, -1, array.shape[-1])


def _written_out(weights: np.ndarray, copies: int, sources: int) -> np.ndarray:
    """[1 or L, out, in] to [1, copies * out, sources * in]."""
    links, (out, into) = max(copies, sources), weights.shape[1:]
    full = np.broadcast_to(weights, (links, out, into))
    if copies == sources:
        return _diagonal([block[None] for block in full])
    if sources == 1:
        return full.reshape(1, copies * out, into)
    return full.transpose(1, 0, 2).reshape(1, out, sources * into)
