import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from polycom_jax import InputError
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import OptimConfig, abstract_state, model_specs
from polycom_jax.training.state import map_mirrored, split_count

SPLIT = "data 2, fsdp 2, tensor 2"


def test_moments_lie_as_their_parameters_and_counters_everywhere(initial):
    state = initial(SPLIT)
    moments = next(part for part in state.opt_state if hasattr(part, "mu"))
    for tree in (moments.mu, moments.nu):
        places = [jax.tree.map(lambda x: x.sharding, t) for t in (tree, state.params)]
        assert places[0] == places[1]
        assert tree["embed"].sharding.spec == P("tensor", "fsdp")
        attention = tree["layers"][0]["attention"]
        assert attention["w_q"].sharding.spec == P(None, "fsdp", "tensor", None)
        assert attention["w_o"].sharding.spec == P(None, "tensor", None, "fsdp")
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
    assert moments.count.sharding.is_fully_replicated
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 0


def test_the_abstract_state_is_the_real_one_without_values(model, meshes, initial):
    abstract = abstract_state(model(), OptimConfig(), meshes[SPLIT])
    state = initial(SPLIT)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for want, got in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (want.shape, want.dtype, want.sharding) == (got.shape, got.dtype, got.sharding)


def test_initial_values_depend_on_neither_mesh_nor_padding(initial):
    """But for two units in the last place: XLA CPU's inverse error function is another one in the
    last few entries of an array that do not fill a vector register."""
    same = functools.partial(np.testing.assert_array_max_ulp, maxulp=2)
    one, many = dict(initial("one device").params), dict(initial(SPLIT).params)
    for name, rows in (("embed", 100), ("unembed", 100)):
        small, large = np.asarray(one.pop(name)), np.asarray(many.pop(name))
        assert (len(small), len(large)) == (128, 256)
        same(small[:rows], large[:rows])
        assert not small[rows:].any()
        assert not large[rows:].any()
    jax.tree.map(lambda a, b: same(np.asarray(a), np.asarray(b)), one, many)


def test_a_leaf_belongs_to_the_parameter_whose_path_ends_its_own():
    by_param = {"a": "outer", "b": {"a": "inner"}}
    tree = {"mu": {"a": 1, "b": {"a": 2}}, "count": 3}
    names = map_mirrored(lambda leaf, name: (leaf, name), tree, by_param)
    assert names == {"mu": {"a": (1, "outer"), "b": {"a": (2, "inner")}}, "count": (3, None)}


def test_split_count_multiplies_the_axes_of_a_rule(meshes):
    mesh = meshes[SPLIT]
    assert split_count(mesh, Rules(), "batch") == 4
    assert split_count(mesh, Rules(), "vocab") == 2
    assert split_count(mesh, Rules(), "seq") == 1


def test_a_width_that_does_not_divide_over_the_mesh_is_refused(model):
    cfg = model(num_heads=1, num_kv_heads=1)
    with pytest.raises(InputError, match=r"attention/w_k.*kv_heads"):
        abstract_state(cfg, OptimConfig(), make_mesh(data=4, tensor=2))


def test_without_a_mesh_specs_are_unsplit(model):
    assert model_specs(model())["embed"].shape[0] == 128
