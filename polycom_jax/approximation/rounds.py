"""Depth for width: copies of a block that stand side by side, computed one after the other."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from polycom_jax._errors import require
from polycom_jax.approximation.network import Affine, Layer, Network

Part = tuple[int, int, Float[np.ndarray, "o i"], Bool[np.ndarray, "o i"]]
"""Of a matrix: first row, first column, weights, and which of them exist."""


def in_rounds(net: Network, rounds: int, *, offset: float) -> Network:
    """The same function on [0, 1]^d, its copies computed in `rounds` turns: K times as deep.

    With copies g_c and y = b + sum_c g_c(x), a round computes the next C / K of the g_c. Beside
    them stand d units that carry x, which is not negative, and one that carries the partial sum:

        s_k = relu(s_(k-1) + sum over round k - 1 of g_c),   s_1 = relu(offset + b + ...),

    and the readout takes `offset` off again. Widths fall to about a K-th. Beside the numbers of
    `net` there are 2 (d + 1) L (K - 1) + 2, or one less if it has a bias b: so for a given size,
    depth costs some cells and gains none.

    Args:
        net: of one output and L hidden layers, all with the same number of copies C, as
            `taylor_network` and `linear_interpolant` make them.
        rounds: K, from 1 to C.
        offset: at least the largest absolute value on [0, 1]^d of b plus a partial sum, copies
            added in their order. With a smaller one, relu may cut the sum off, and the function is
            another: that is not checked, since the network does not know what its sums reach.

    Raises:
        InputError: another kind of network, or rounds out of range.
    """
    counts = {layer.affine.copies for layer in net.layers} | {net.readout.sources}
    require(
        len(counts) == 1 and net.outputs == 1 and net.depth >= 1,
        f"the network must have one output and copies alike in number, not {net.outputs} and"
        f" {sorted(counts)}.",
    )
    count = counts.pop()
    require(1 <= rounds <= count, f"rounds={rounds} must be from 1 to the {count} copies.")
    turns = [np.asarray(turn) for turn in np.array_split(np.arange(count), rounds)]
    layers = [
        _layer(net, turns, k, depth, offset) for k in range(rounds) for depth in range(net.depth)
    ]
    return Network(tuple(layers), _readout(net, turns, offset), net.smoothness, net.condition)


def _carried(net: Network, k: int, rounds: int) -> tuple[int, int]:
    """How many units of round k carry variables, and how many the sum."""
    return (net.inputs if k < rounds - 1 else 0), int(k > 0)


def _layer(net: Network, turns: Sequence[np.ndarray], k: int, depth: int, offset: float) -> Layer:
    """Hidden layer `depth` of round k: variables, sum, copies."""
    inner, own = net.layers[depth], turns[k]
    variables, sums = _carried(net, k, len(turns))
    first = variables + sums
    blocks = _blocks(inner.affine, own, over=depth > 0)
    parts: list[Part] = []
    biases, biased = np.zeros(first), np.zeros(first, bool)
    if depth:
        parts.append(_ones(0, 0, first))
        parts.append((first, first, *blocks))
        read = first + len(own) * net.layers[depth - 1].coeffs.shape[1]
    else:
        before = _carried(net, k - 1, len(turns)) if k else (net.inputs, 0)
        parts.append(_ones(0, 0, variables))
        parts.append((first, 0, *blocks))
        read = sum(before)
        if k:
            parts += _sum(net, turns[k - 1], variables, before)
            read += len(turns[k - 1]) * net.layers[-1].coeffs.shape[1]
        if k == 1:
            biases[-1], biased[-1] = offset + net.readout.biases[0, 0], True
    rows = inner.affine.biases[own if len(inner.affine.biases) > 1 else [0] * len(own)]
    units = first + rows.size
    weights, wires = _placed((units, read), parts)
    through = Affine(
        weights[None],
        np.concatenate([biases, rows.ravel()])[None],
        wires,
        np.concatenate([biased, np.tile(inner.affine.biased, len(own))]),
    )
    return Layer(through, _coefficients(inner, own, first)[None])


def _readout(net: Network, turns: Sequence[np.ndarray], offset: float) -> Affine:
    last = len(turns) - 1
    _, sums = _carried(net, last, last + 1)
    blocks = _blocks(net.readout, turns[-1], over=True)
    weights, wires = _placed(
        (1, sums + blocks[0].shape[1]), [_ones(0, 0, sums), (0, sums, *blocks)]
    )
    if not sums:
        return Affine(weights[None], net.readout.biases, wires, net.readout.biased)
    return Affine(weights[None], np.array([[-offset]]), wires, np.ones(1, bool))


def _sum(net: Network, turn: np.ndarray, row: int, before: tuple[int, int]) -> list[Part]:
    """What the sum reads of the round before: the sum there, if there is one, and its copies."""
    variables, sums = before
    blocks = _blocks(net.readout, turn, over=True)
    return [_ones(row, variables, sums), (row, variables + sums, *blocks)]


def _blocks(
    through: Affine, own: np.ndarray, *, over: bool
) -> tuple[Float[np.ndarray, "o i"], Bool[np.ndarray, "o i"]]:
    """Matrices of some copies: diagonal or side by side if each reads numbers of its own."""
    matrices = through.weights[own if len(through.weights) > 1 else [0] * len(own)]
    every = [(weights, through.wires) for weights in matrices]
    rows, columns = through.wires.shape
    down, right = rows * (through.copies > 1), columns * over
    shape = (down * (len(own) - 1) + rows, right * (len(own) - 1) + columns)
    return _placed(shape, [(down * i, right * i, *pair) for i, pair in enumerate(every)])


def _coefficients(inner: Layer, own: np.ndarray, carried: int) -> Float[np.ndarray, "u r"]:
    table = inner.coeffs[own if len(inner.coeffs) > 1 else [0] * len(own)]
    table = table.reshape(-1, table.shape[-1])
    carry = np.zeros((carried, table.shape[-1]))
    carry[:, 1] = 1
    return np.concatenate([carry, table])


def _ones(row: int, column: int, count: int) -> Part:
    return row, column, np.eye(count), np.eye(count, dtype=bool)


def _placed(
    shape: tuple[int, int], parts: Sequence[Part]
) -> tuple[Float[np.ndarray, "o i"], Bool[np.ndarray, "o i"]]:
    """The matrix with these parts in it, zero elsewhere."""
    weights, wires = np.zeros(shape), np.zeros(shape, bool)
    for row, column, values, exist in parts:
        where = slice(row, row + values.shape[0]), slice(column, column + values.shape[1])
        weights[where], wires[where] = values, exist
    return weights, wires
