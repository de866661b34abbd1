"""Multilayer perceptrons of equal size, of every row of the table."""

import math
from dataclasses import replace

import jax
import pytest

from experiments.sobolev.mlp import mlp_of_size
from experiments.sobolev.options import TrainOptions
from polycom_jax import ACTIVATIONS, InputError, get_activation


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_networks_have_about_equal_size(activation: str):
    groups = math.lcm(*(each.groups for each in get_activation(activation).parameters.values()))
    for size in TrainOptions().sizes if groups == 1 else (900 * groups,):
        mlp = mlp_of_size(activation, size, dim=2, layers=2)
        wider = replace(mlp, width=mlp.width + groups)
        assert mlp.size <= size < wider.size
        shapes = jax.eval_shape(mlp.init, jax.random.key(0))
        assert mlp.size == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_a_size_without_room_for_a_group_of_units_is_refused():
    with pytest.raises(InputError, match=r"100 parameters are too few for gdn .* smallest has 249"):
        mlp_of_size("gdn", 100, dim=2, layers=2)
