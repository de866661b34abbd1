import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from polycom_jax import InputError
from polycom_jax import params as pm
from polycom_jax.params import ParamSpec
from polycom_jax.sharding import Rules, constrain, make_mesh

NORMAL = jax.nn.initializers.normal(1.0)
SPECS = {
    "embed": ParamSpec((8, 4), ("vocab", "embed"), NORMAL, "embedding", rows=6),
    "layers": [
        pm.stack({"w": ParamSpec((4, 16), ("embed", "mlp"), NORMAL, "matrix")}, 3),
        pm.stack({"w": ParamSpec((4, 16), ("embed", "mlp"), NORMAL, "matrix")}, 2, first_layer=3),
    ],
    "coeffs": ParamSpec((4,), (None,), jax.nn.initializers.ones, "coefficient"),
}


def test_counts_leave_padding_out():
    assert pm.count(SPECS) == 6 * 4 + 5 * 4 * 16 + 4


def test_padding_rows_start_as_zero():
    embed = pm.init(SPECS, jax.random.key(0))["embed"]
    assert np.all(np.asarray(embed[6:]) == 0)
    assert np.all(np.asarray(embed[:6]) != 0)


def test_a_layer_draws_the_same_values_however_layers_are_grouped():
    grouped = pm.init(SPECS, jax.random.key(0))["layers"]
    one_group = {
        "layers": [pm.stack({"w": ParamSpec((4, 16), ("embed", "mlp"), NORMAL, "matrix")}, 5)]
    }
    flat = pm.init(one_group, jax.random.key(0))["layers"][0]["w"]
    chex.assert_trees_all_equal(jnp.concatenate([g["w"] for g in grouped]), flat)
    assert len({float(x) for x in flat[:, 0, 0]}) == 5


def test_values_do_not_depend_on_what_else_there_is():
    fewer = {k: v for k, v in SPECS.items() if k != "embed"}
    key = jax.random.key(0)
    chex.assert_trees_all_equal(pm.init(fewer, key)["layers"], pm.init(SPECS, key)["layers"])


def test_values_do_not_depend_on_the_mesh():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    specs = {**SPECS, "embed": ParamSpec((8, 4), ("vocab", "embed"), NORMAL, "embedding")}
    shardings = pm.shardings(specs, mesh, Rules())
    split = jax.jit(lambda k: pm.init(specs, k), out_shardings=shardings)(jax.random.key(0))
    assert split["embed"].sharding.spec == P("tensor", "fsdp")
    whole = jax.jit(lambda k: pm.init(specs, k))(jax.random.key(0))
    chex.assert_trees_all_equal(jax.device_get(split), jax.device_get(whole))


def test_masks_and_casts_select_by_role():
    mask = pm.mask(SPECS, {"matrix"})
    assert mask == {"embed": False, "layers": [{"w": True}, {"w": True}], "coeffs": False}
    params = pm.cast(SPECS, pm.init(SPECS, jax.random.key(0)), jnp.bfloat16)
    assert params["embed"].dtype == jnp.bfloat16
    assert params["coeffs"].dtype == jnp.float32


def test_the_abstract_tree_has_shapes_dtypes_and_shardings():
    mesh = make_mesh(data=4, fsdp=2)
    tree = pm.abstract(SPECS, mesh, Rules())
    real = pm.init(SPECS, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, real)
    assert tree["layers"][0]["w"].sharding.spec == P(None, "fsdp", "tensor")


def test_dimensions_that_do_not_divide_name_the_nearest_that_do():
    mesh = make_mesh(data=1, tensor=8)
    specs = {"ffn": {"w_up": ParamSpec((4, 20), ("embed", "mlp"), NORMAL, "matrix")}}
    message = r"ffn/w_up: dimension 'mlp' of size 20 .* tensor of size 8; nearest sizes: 16 or 24"
    with pytest.raises(InputError, match=message):
        pm.shardings(specs, mesh, Rules())


def test_experts_are_split_by_number_where_it_divides_and_else_by_width():
    mesh = make_mesh(data=1, fsdp=2, expert=2, tensor=2)
    axes = ("layers", "expert", "embed", "mlp")

    def partition(experts: int) -> P:
        spec = ParamSpec((3, experts, 16, 12), axes, NORMAL, "matrix", stacked=1)
        return pm.shardings(spec, mesh, Rules()).spec

    assert partition(8) == P(None, ("expert", "fsdp"), None, "tensor")
    assert partition(6) == P(None, "expert", "fsdp", "tensor")
    with pytest.raises(InputError, match="'expert' of size 5 does not divide"):
        partition(5)


def test_misspelt_logical_axes_are_errors():
    with pytest.raises(InputError, match="Did you mean 'embed'"):
        Rules().partition(("embde", "mlp"))


def test_one_mesh_axis_takes_one_dimension():
    with pytest.raises(InputError, match="'heads' and 'mlp' both map to mesh axis 'tensor'"):
        Rules().partition(("heads", "mlp"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "data=3, fsdp=1, tensor=1, expert=1 needs 3 devices, and there are 8"),
        ({"data": -1, "tensor": 3}, "needs a multiple of 3 devices, and there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one axis may be -1"),
        ({"data": 0}, "mesh axis data=0 must be at least 1"),
    ],
)
def test_meshes_that_do_not_fit_say_why(sizes: dict, message: str):
    with pytest.raises(InputError, match=message):
        make_mesh(**sizes)


def test_one_axis_takes_what_is_left():
    assert make_mesh(data=-1, tensor=2).shape["data"] == 4


def test_constrain_without_rules_does_nothing_and_with_rules_shards():
    x = jnp.ones((8, 4))
    assert constrain(x, None, "batch", "mlp") is x
    with jax.set_mesh(make_mesh(data=2, tensor=4)):
        y = jax.jit(lambda x: constrain(x, Rules(), "batch", "mlp"))(x)
    assert y.sharding.shard_shape(y.shape) == (4, 1)
