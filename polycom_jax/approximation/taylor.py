"""Theorem 3 of arXiv 2411.03884 as code: one network for a given target in W^{n,inf}([0,1]^d).

f_N = sum_m phi_m P_m, with a partition of unity on the grid m / N and the Taylor polynomial P_m of
degree n - 1 about each node. For PolyReLU networks all products are exact, and the size is
O(eps^(-d/n)). For ReLU networks every product costs O(log(1/eps)) (Yarotsky 2017).

What is optimal: by DeVore, Howard and Micchelli (1989, Theorem 4.2), no method whose parameters
depend *continuously* on the target does better than eps^(-d/n) parameters on the unit ball. The
networks here are of that kind. Methods that choose parameters discontinuously can do better with
deep networks, and nothing here says otherwise.
"""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int

from polycom_jax._errors import require
from polycom_jax.activations.inputs import work_dtype
from polycom_jax.approximation import bounds
from polycom_jax.approximation.combine import DENSE_LIMIT, block_diagonal, compose
from polycom_jax.approximation.exact import exact_arithmetic
from polycom_jax.approximation.network import Affine, Layer, Network, linear
from polycom_jax.approximation.partitions import Partition, PartitionName, partition
from polycom_jax.approximation.product_tree import Arithmetic, monomials
from polycom_jax.approximation.sawtooth import sawtooth_arithmetic, teeth_for
from polycom_jax.approximation.sobolev import Function, derivatives_at, made_of_jax_operations


def taylor_network(
    f: Function,
    n: int,
    d: int,
    cells: int | None = None,
    *,
    eps: float | None = None,
    kind: PartitionName = "trapezoid",
    limit: int = DENSE_LIMIT,
) -> Network:
    """A PolyReLU network for `f` on [0, 1]^d: f_N = sum_m phi_m P_m, without further error.

    The error is at most `bounds.bound(n, d, N, kind)` for `f` in the unit ball of W^{n,inf}, plus
    a few roundings of the dtype that the network is evaluated in, and the size is
    `bounds.size_formula(n, d, N, kind)`. With trapezoids the approximant is in W^{1,inf} and the
    rates are n in L^inf and n - 1 in W^{1,inf}. With splines (beyond the paper) it is C^2, as no
    ReLU network is, and the rates are n, n - 1, n - 2 in L^inf, W^{1,inf}, W^{2,inf}.

    Args:
        f: the target; its derivatives up to order n - 1 are taken by JAX, in float64.
        n: derivatives of the target that are used; n - 1 is the degree of the polynomials.
        d: number of variables.
        cells: N, cells on each axis; or give `eps`.
        eps: the error wanted for the unit ball; N is then the least whose bound it is.
        kind: the partition of unity.
        limit: the most bytes of numbers that the construction may take.

    Returns:
        A network of copies: one for each node, in the order of `itertools.product` over the axes.

    Raises:
        InputError: n, d or N below 1, eps outside (0, 1), both or neither of N and eps, more memory
            than `limit`, or a target whose values or derivatives are not finite numbers [P].
    """
    require(
        (cells is None) != (eps is None),
        f"give one of cells and eps, not cells={cells} and eps={eps}.",
    )
    if cells is None:
        cells = bounds.cells_for(eps or 0, n, d, kind)
    check_memory(n, d, cells, kind, limit)
    basis = partition(kind)
    coeffs = local_coefficients(f, n, d, cells, basis)
    cell = _cell(n, d, basis, exact_arithmetic(nonnegative=True))
    # Units of products are 0 nowhere inside.
    return _assemble(cell, coeffs, cells, basis.smoothness)


def relu_taylor_network(
    f: Function, n: int, d: int, eps: float, *, limit: int = DENSE_LIMIT
) -> Network:
    """A ReLU network within `eps` of `f`, in the unit ball of W^{n,inf}([0,1]^d) (Yarotsky 2017).

    The same construction as `taylor_network`, with each product replaced by sawtooth networks. Half
    of eps is left to the Taylor polynomials, which gives N, and half to the products: at a point
    2^d nodes count, and of node m's terms c_k phi t^k each is off by at most (d + |k| - 1) delta,
    where delta is the error of a product. Terms of nodes that do not count are exactly 0. Without
    products (n = d = 1) all of eps goes to N.

    Raises:
        InputError: as for `taylor_network`.
    """
    bounds.check_eps(eps)
    products = n * d > 1
    share = eps / 2 if products else eps
    cells = bounds.cells_for(share, n, d)
    check_memory(n, d, cells, "trapezoid", limit)
    basis = partition("trapezoid")
    coeffs = local_coefficients(f, n, d, cells, basis)
    times = np.array([sum(row) - 1 for row in bounds.cell_exponents(n, d)])
    amplified = 2**d * float((np.abs(coeffs) @ times).max())
    teeth = teeth_for(share / amplified) if amplified > 0 else 1
    how = sawtooth_arithmetic(teeth, nonnegative=True)
    return _assemble(_cell(n, d, basis, how), coeffs, cells, 1)


def linear_interpolant(f: Function, cells: int) -> Network:
    """The ReLU network that interpolates `f` linearly at 0, 1/N, ..., 1, by one layer of N units.

    For d = 1 and n <= 2 it needs no logarithm: the error is at most `interpolation_bound`, the size
    4 N + 1. So the logarithm is a matter of higher orders.

    Raises:
        InputError: N below 1, or values that are not finite numbers [P].
    """
    bounds.check_cells(cells)
    nodes = np.arange(cells + 1) / cells
    values = derivatives(f, nodes[:, None], [(0,)])[:, 0]
    slopes = np.diff(values) * cells
    units = Affine(np.ones((1, 1, 1)), -nodes[:-1, None], np.ones((1, 1), bool), np.ones(1, bool))
    jumps = np.diff(slopes, prepend=0)[:, None, None]
    readout = Affine(jumps, values[:1, None], np.ones((1, 1), bool), np.ones(1, bool), cells)
    layer = Layer(replace(units, copies=cells), np.array([[[0.0, 1.0]]]))
    return Network((layer,), readout, smoothness=1)


def interpolation_bound(n: int, cells: int) -> float:
    """The error of linear interpolation on the unit ball of W^{n,inf}([0,1]): 1/(2N), 1/(8N^2).

    Raises:
        InputError: n other than 1 and 2, or N below 1.
    """
    require(n in (1, 2), f"n={n}: linear interpolation has rates for n = 1 and n = 2 only.")
    bounds.check_cells(cells)
    return 1 / (2 * cells) if n == 1 else 1 / (8 * cells**2)


def active_copies(x: Float[ArrayLike, "P d"], cells: int) -> Int[Array, "P K"]:
    """The copies of a Taylor network that do not vanish at `x`, for `evaluate_copies`.

    There are 2^d of them, the corners of the cell that `x` is in: bumps of every `PartitionName`
    reach over one cell.
    """
    points = jnp.asarray(x)
    points = points.astype(work_dtype(points.dtype))
    corner = jnp.clip(jnp.floor(points * cells).astype(int), 0, cells - 1)
    offsets = np.array(list(itertools.product(range(2), repeat=points.shape[1])))
    strides = (cells + 1) ** np.arange(points.shape[1])[::-1]
    return (corner @ strides)[:, None] + (offsets @ strides)[None]


def check_memory(n: int, d: int, cells: int, kind: PartitionName, limit: int = DENSE_LIMIT) -> None:
    """Refuses a construction that takes more than `limit` bytes, before any work.

    Counted are the numbers of each node: its derivatives (twice), biases and readout.

    Raises:
        InputError: more than `limit` bytes, or n, d, N below 1.
    """
    bounds.check_order(n, d)
    bounds.check_cells(cells)
    basis = partition(kind)
    nodes = (cells + 1) ** d
    terms = math.comb(n - 1 + d, d)
    needed = 8 * nodes * (2 * n**d + terms + 3 * terms + d * basis.bump.width * 2)
    require(
        needed <= limit,
        f"N={cells} in d={d} dimensions gives {nodes:,} nodes, whose numbers for n={n} take"
        f" {needed / 2**20:,.0f} MiB; the limit is {limit / 2**20:,.0f} MiB. Take a smaller N.",
    )


def derivatives(
    f: Function, points: Float[np.ndarray, "P d"], indices: list[tuple[int, ...]]
) -> Float[np.ndarray, "P M"]:
    """D^m f at each point for each multi-index m, in float64, by nested forward differentiation.

    Raises:
        InputError: a target that does not return [P], is not made of JAX's operations, or has
            values that are not finite.
    """
    with jax.enable_x64(True), made_of_jax_operations():
        x = jnp.asarray(points)
        shape = jax.eval_shape(f, x).shape
        require(
            shape == x.shape[:1],
            f"the target must map points {x.shape} to values {x.shape[:1]}, and gives {shape}.",
        )
        values = np.asarray(derivatives_at(Partial(f), x, tuple(indices))).T
    bad = [index for k, index in enumerate(indices) if not np.isfinite(values[:, k]).all()]
    require(not bad, f"the target's derivatives {bad} are not finite at all nodes in [0, 1]^d.")
    return values


def local_coefficients(
    f: Function, n: int, d: int, cells: int, basis: Partition
) -> Float[np.ndarray, "B T"]:
    """Coefficients of each node's Taylor polynomial in powers of the local coordinates t.

    x - node = span (t - 1/2) / N on each axis. Terms are in the order of
    `bounds.multi_indices(d, n - 1)`.
    """
    positions = _positions(cells, d)
    indices = bounds.multi_indices(d, n - 1)
    values = derivatives(f, positions / cells, indices)
    table = np.zeros((len(positions), *[n] * d))
    for k, index in enumerate(indices):
        table[:, *index] = values[:, k] / math.prod(map(math.factorial, index))
    change = np.zeros((n, n))  # (span (t - 1/2))^k to powers t^j
    for k, j in itertools.product(range(n), range(n)):
        if j <= k:
            power = (-basis.span / 2) ** (k - j) * basis.span**j
            change[k, j] = math.comb(k, j) * power / float(cells) ** k
    for axis in range(d):
        moved = np.moveaxis(table, axis + 1, -1) @ change
        table = np.moveaxis(moved, -1, axis + 1)
    return np.stack([table[:, *index] for index in indices], axis=1)


def _positions(cells: int, d: int) -> Int[np.ndarray, "B d"]:
    axis = np.arange(cells + 1)
    return np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1).reshape(-1, d)


def _cell(n: int, d: int, basis: Partition, how: Arithmetic) -> Network:
    """Local variables z to the terms phi(z) t(z)^m, |m| < n."""
    features = [basis.bump] * d + [basis.coordinate] * d * (n > 1)
    read = linear(np.tile(np.eye(d), (2 if n > 1 else 1, 1)))
    terms = monomials(bounds.cell_exponents(n, d), how)
    return compose(terms, compose(block_diagonal(*features), read))


def _assemble(cell: Network, coeffs: np.ndarray, cells: int, smoothness: int) -> Network:
    """x to sum_m coeffs[m] . cell(N x - m): copies that differ in first biases and readout."""
    count = len(coeffs)
    first, positions = cell.layers[0].affine, _positions(cells, cell.inputs)
    entry = replace(
        first,
        weights=first.weights * cells,
        biases=first.biases - positions @ first.weights[0].T,
        biased=np.ones_like(first.biased),
        copies=count,
    )
    layers = [replace(cell.layers[0], affine=entry)]
    for layer in cell.layers[1:]:
        layers.append(replace(layer, affine=replace(layer.affine, sources=count, copies=count)))
    readout = replace(
        cell.readout,
        weights=(coeffs @ cell.readout.weights[0])[:, None],
        biases=np.zeros((1, 1)),
        wires=cell.readout.wires.any(0, keepdims=True),
        biased=np.zeros(1, bool),
        sources=count,
    )
    return Network(tuple(layers), readout, smoothness)
