"""Training from constructed networks, and from what they are compared with at equal size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from experiments.sobolev.fit import Fit, Runs
from experiments.sobolev.mlp import mlp_of_size
from experiments.sobolev.options import RefineOptions
from experiments.sobolev.train import Contestant, Standardised, Study
from polycom_jax import approximation as pa
from polycom_jax.params import Params

Row = dict[str, Any]

AS_BUILT = "constructed"
TRAINED = "constructed and trained"
REWIRED = "its wires from random"


@dataclass(frozen=True, eq=False)
class Wired:
    """The numbers that stand in a constructed network, trained; those that do not stay 0.

    So the size of Theorem 3 is that of the trained network, too.

    Attributes:
        wires: which numbers stand there, of `polycom_jax.approximation.dense_wires`.
        built: the numbers, of `to_dense`, with a leading axis of targets.
        random: whether training starts at random weights and biases, drawn as an `Mlp`'s are,
            instead of those built. Units keep their powers: coefficients start as built.
    """

    wires: Params
    built: Params
    random: bool

    @property
    def size(self) -> int:
        """Number of parameters: that of the constructed network."""
        return sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(self.wires))

    def init(self, key: Key[Array, ""], target: Int[Array, ""]) -> Params:
        """The network built for the target, or one at random with the same wires."""
        built = jax.tree.map(lambda leaf: leaf[target], self.built)
        if not self.random:
            return built
        maps = [*self.wires["layers"], self.wires["readout"]]
        drawn = [_affine(k, m) for k, m in zip(jax.random.split(key, len(maps)), maps, strict=True)]
        layers = [
            {**own, "coeffs": layer["coeffs"]}
            for own, layer in zip(drawn, built["layers"], strict=False)
        ]
        return {"layers": layers, "readout": drawn[-1]}

    def apply(self, params: Params, x: Float[Array, "P d"]) -> Float[Array, " P"]:
        """Values at points of [0,1]^d."""
        kept = jax.tree.map(lambda p, wire: jnp.where(wire, p, 0), params, self.wires)
        return pa.apply_dense(kept, x)[:, 0]


def _affine(key: Key[Array, ""], wires: Params) -> Params:
    """Weights of variance 1 / (wires into the unit), biases uniform on [-1, 1], where they are."""
    weights, biases = jax.random.split(key)
    read = jnp.maximum(1, wires["weights"].sum(axis=0, keepdims=True))
    normal = jax.random.normal(weights, wires["weights"].shape) / jnp.sqrt(read)
    uniform = jax.random.uniform(biases, wires["biases"].shape, minval=-1, maxval=1)
    return {
        "weights": jnp.where(wires["weights"], normal, 0),
        "biases": jnp.where(wires["biases"], uniform, 0),
    }


def wired(options: RefineOptions, targets: Sequence[Standardised], size: int) -> Wired:
    """Theorem 3's networks for all targets, of the most cells with at most `size` numbers."""
    cells = options.construction(size)
    nets = [pa.taylor_network(f, options.order, options.dim, cells) for f in targets]
    trees = [pa.to_dense(net, dtype=jnp.float32) for net in nets]
    built = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return Wired(pa.dense_wires(nets[0]), built, random=False)


def networks(options: RefineOptions) -> list[tuple[str, int]]:
    """(name, size) of all cells, that of the construction as it was built among them."""
    names = (AS_BUILT, TRAINED, REWIRED, *map(_perceptron, options.activations))
    return [(name, size) for size in options.sizes for name in names]


def _perceptron(activation: str) -> str:
    return f"MLP {activation}"


def contestants(options: RefineOptions, targets: Sequence[Standardised]) -> list[Contestant]:
    """Of each size: the construction, its wires at random, and MLPs of no more parameters."""
    mlps = {size: _perceptrons(options, size) for size in options.sizes}  # refuses
    found = []
    for size in options.sizes:
        net = wired(options, targets, size)
        found.append(Contestant(TRAINED, size, net))
        found.append(Contestant(REWIRED, size, Wired(net.wires, net.built, random=True)))
        found += mlps[size]
    return found


def _perceptrons(options: RefineOptions, size: int) -> list[Contestant]:
    numbers = pa.size_formula(options.order, options.dim, options.construction(size))
    return [
        Contestant(
            _perceptron(activation),
            size,
            mlp_of_size(activation, numbers, dim=options.dim, layers=options.layers),
        )
        for activation in options.activations
    ]


def as_built(study: Study, every: Sequence[Contestant]) -> list[Row]:
    """Cells of the constructions before training, whose errors are the same for all seeds."""
    options, cells = study.options, list[Row]()
    for each in every:
        if each.activation != TRAINED:
            continue
        runs = Runs.of((0.0, target, 0) for target in range(len(options.targets)))
        state = Fit(each.network, steps=1, batch_size=1).start(runs)
        errors = study.errors(each.network, state.params, runs)
        cells.append(
            {
                "activation": AS_BUILT,
                "size": each.size,
                "parameters": each.network.size,
                "learning_rate": 0.0,
                "selection": [],
                "runs": [
                    {"target": target, "seed": seed, **error}
                    for target, error in zip(options.targets, errors, strict=True)
                    for seed in range(options.seeds)
                ],
            }
        )
    return cells
