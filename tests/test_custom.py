"""Activations of a user's own: parameters of every kind, in models, modules and on a mesh."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import polycom_jax as pc
from polycom_jax import models
from polycom_jax.models import transformer
from polycom_jax.modules import linen
from polycom_jax.modules import nnx as modules
from polycom_jax.params import count
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import OptimConfig, make_optimizer, make_state, model_specs

NO_FUNCTION: Any = 3
TWO: Any = lambda x: (x, x)  # noqa: E731
"""What `activation` refuses, and the types do, too."""


def leaky(x, beta, slope, gain, own):
    return own * jnp.where(x > 0, gain[0] * x * jax.nn.sigmoid(beta * x), gain[1] + slope * x)


ACT = pc.activation(
    leaky,
    {
        "beta": 1.0,
        "slope": pc.Parameter(0.25, per="channel"),
        "gain": pc.Parameter((1.0, 0.5), per="group", groups=4),
        "own": pc.Parameter(1.0, per="expert", role="router"),
    },
)

SMALL: dict[str, Any] = {
    **{"num_layers": 2, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8},
    **{"gated_width": 16, "context_length": 16, "vocab_size": 32},
}


def plain(params, x):
    gain = jnp.repeat(params["gain"], x.shape[-1] // 4, axis=-1)
    return params["own"] * jnp.where(
        x > 0,
        gain[0][None] * x * jax.nn.sigmoid(params["beta"] * x),
        gain[1][None] + params["slope"][None] * x,
    )


def test_gradients_are_those_of_the_plain_function():
    params = ACT.init(jax.random.key(0), 8)
    x, dy = jax.random.normal(jax.random.key(1), (2, 5, 8))

    def loss(f, params, x):
        return jnp.sum(f(params, x) * dy)

    got = jax.grad(loss, (1, 2))(ACT.apply, params, x)
    wanted = jax.grad(loss, (1, 2))(plain, params, x)
    chex.assert_trees_all_close(got, wanted, rtol=2e-6, atol=1e-6)


def test_parameters_are_declared_by_what_they_belong_to():
    specs = ACT.specs_at(8)
    assert {name: (s.shape, s.axes) for name, s in specs.items()} == {
        "beta": ((), ()),
        "slope": ((8,), ("mlp",)),
        "gain": ((2, 4), (None, "mlp")),
        "own": ((), ()),
    }
    assert ACT.init(jax.random.key(0), 8)["gain"].tolist() == [[1.0] * 4, [0.5] * 4]
    with pytest.raises(pc.InputError, match="the hidden width is needed"):
        _ = ACT.specs
    with pytest.raises(pc.InputError, match="groups=4 must divide the hidden width 10"):
        ACT.specs_at(10)


@pytest.mark.parametrize("preset", ["tiny", "moe-tiny"])
def test_they_stack_over_layers_and_experts(preset: str):
    cfg = models.preset(preset, **SMALL, activation=ACT)
    block = models.init(cfg, jax.random.key(0))["layers"][0]["moe" if cfg.is_moe else "ffn"]
    experts = (cfg.moe.num_experts,) if cfg.is_moe else ()
    shapes = {name: value.shape for name, value in block["activation"].items()}
    assert shapes == {"beta": (2,), "slope": (2, 24), "gain": (2, 2, 4), "own": (2, *experts)}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "moe-tiny"])
def test_a_model_loses_the_same_on_a_mesh_of_all_axes(preset: str):
    cfg = models.preset(preset, **SMALL, activation=ACT)
    tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, 32)
    mesh = make_mesh(data=2, tensor=2, expert=2 if cfg.is_moe else 1, fsdp=1 if cfg.is_moe else 2)

    def loss(params, rules):
        x, _, _ = models.hidden(cfg, params, tokens, rules=rules)
        return jnp.sum(jnp.square(models.unembed(cfg, params, x))) * 1e-3

    optim = OptimConfig()
    whole = make_state(cfg, optim, jax.random.key(0), make_mesh(devices=jax.devices()[:1])).params
    wanted = jax.jit(jax.value_and_grad(lambda p: loss(p, None)))(jax.device_get(whole))
    with jax.set_mesh(mesh):
        split = make_state(cfg, optim, jax.random.key(0), mesh).params
        got = jax.jit(jax.value_and_grad(lambda p: loss(p, Rules())))(split)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    own = [
        tree[1]["layers"][0]["moe" if cfg.is_moe else "ffn"]["activation"] for tree in (got, wanted)
    ]
    chex.assert_trees_all_close(*map(jax.device_get, own), rtol=2e-4, atol=1e-5)


def test_roles_decide_what_decays():
    cfg = models.preset("tiny", **SMALL, activation=ACT)
    mesh = make_mesh(devices=jax.devices()[:1])
    specs = model_specs(cfg, mesh)
    params = models.init(cfg, jax.random.key(0))
    optimizer = make_optimizer(OptimConfig(clip_norm=None, warmup_steps=0), specs, 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    found: Any = optimizer.update(zero, optimizer.init(params), params)
    own = found[0]["layers"][0]["ffn"]["activation"]
    assert bool(jnp.all(own["own"] != 0))  # a router decays
    assert all(bool(jnp.all(own[name] == 0)) for name in ("beta", "slope", "gain"))


def test_flax_modules_take_it():
    x = jax.random.normal(jax.random.key(1), (3, 8))
    params = ACT.init(jax.random.key(0), 8)
    module = linen.Activation(ACT)
    variables = module.init(jax.random.key(0), x)
    chex.assert_trees_all_equal(variables["params"], params)
    np.testing.assert_array_equal(module.apply(variables, x), ACT.apply(params, x))
    with_features = modules.Activation(ACT, features=8, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(with_features(x), ACT.apply(params, x))
    block = modules.FeedForward(4, 8, activation=ACT, rngs=nnx.Rngs(0))
    assert block(jnp.ones((2, 4))).shape == (2, 4)


def test_what_reads_whole_rows_is_seen_and_refused_where_rows_are_split():
    def normed(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    act = pc.activation(normed)
    assert act.over_rows
    assert act.name == "normed"
    assert not pc.activation(jax.nn.silu, name="own_silu").over_rows
    with pytest.raises(
        pc.InputError, match="normed reads whole rows, which the mesh axis 'tensor'"
    ):
        act.apply({}, jnp.ones((2, 4)), axis_name="tensor")


def test_flops_are_counted_or_stated():
    assert pc.activation(lambda x: jnp.tanh(x) * x + 1, name="f").flops == 3
    assert pc.activation(lambda x: jnp.tanh(x), name="f", flops=7).flops == 7


def test_operations_of_loops_and_branches_are_counted():
    def counted(f: Any) -> int:
        return pc.activation(f, name="f").flops

    twice = lambda x: jnp.sin(x) * x  # noqa: E731
    assert counted(lambda x: jax.lax.fori_loop(0, 10, lambda i, y: twice(y), x)) == 20
    assert counted(lambda x: jax.lax.map(twice, x)) == 2
    branches = lambda x, w: jax.lax.cond(w > 0, jnp.tanh, twice, x)  # noqa: E731
    assert pc.activation(branches, {"w": 1.0}, name="f").flops == 2
    assert pc.activation(lambda x, w: jnp.polyval(w, x), {"w": (1.0,) * 4}, name="f").flops == 6


def test_functions_of_an_element_count_each():
    """As of a sum of eight bumps: sub, square, neg, exp, mul and add of each."""

    def bumps(x, c):
        c, middles = (a.reshape(*[1] * x.ndim, 8) for a in (c, jnp.linspace(-2, 2, 8)))
        return jnp.sum(c * jnp.exp(-((x[..., None] - middles) ** 2)), axis=-1)

    assert pc.activation(bumps, {"c": (0.1,) * 8}, name="f").flops == 8 * 6

    def low_rank(x, a, b):
        return jnp.repeat(x.reshape(*x.shape[:-1], -1, 5) @ a @ b, 1, axis=-1).reshape(x.shape)

    learned = {"a": pc.Parameter(((0.1,),) * 5), "b": pc.Parameter(((0.1,) * 5,))}
    assert pc.activation(low_rank, learned, name="f").flops == 2 + 2


def until_small(x):
    return jax.lax.while_loop(lambda y: jnp.abs(y).sum() > 1, lambda y: y / 2, x)


def test_a_loop_whose_end_is_not_known_asks_for_its_operations():
    with pytest.raises(pc.InputError, match=r"f: operations .* state flops=") as told:
        _ = pc.activation(until_small, name="f").flops
    assert "\n" not in str(told.value)
    act = pc.activation(until_small, name="f", flops=12)
    assert act.flops == 12
    pc.testing.check_activation(act, checks=["flops_are_counted"])


@pytest.mark.parametrize("name", ["activation", "param", "init"])
def test_a_parameter_that_a_linen_module_cannot_have_is_told(name: str):
    act = pc.activation(lambda x, **learned: x * learned[name], {name: 1.0}, name="f")
    with pytest.raises(pc.InputError, match=f"a Linen module has '{name}' already"):
        linen.Activation(act).init(jax.random.key(0), jnp.ones((2, 4)))


def test_a_parameter_that_an_nnx_module_cannot_have_is_told():
    act = pc.activation(lambda x, train: x * train, {"train": 1.0}, name="f")
    with pytest.raises(pc.InputError, match="an NNX module has 'train' already"):
        modules.Activation(act, rngs=nnx.Rngs(0))


def test_gated_ones_have_three_matrices():
    act = pc.activation(lambda gate, up: jax.nn.silu(gate) * up, gated=True, name="own_glu")
    cfg = models.preset("tiny", **SMALL, activation=act)
    swiglu = models.preset("tiny", **SMALL, activation="swiglu")
    assert count(transformer.specs(cfg)) == count(transformer.specs(swiglu))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = models.init(cfg, jax.random.key(0))
    np.testing.assert_allclose(
        models.forward(cfg, params, tokens), models.forward(swiglu, params, tokens), atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pc.activation(NO_FUNCTION), "3 is no function"),
        (lambda: pc.activation(lambda x, a: x, {"b": 1.0}, name="f"), "unexpected keyword"),
        (lambda: pc.activation(lambda x: x.sum(-1), name="f"), r"it returned float32\[3\]"),
        (lambda: pc.activation(TWO, name="f"), "it returned a tuple"),
        (lambda: pc.activation(lambda x: x > 0, name="f"), r"it returned bool\[3, 5\]"),
        (lambda: pc.activation(lambda x, a: x, {"a": "one"}, name="f"), "start='one' must be"),
        (lambda: pc.activation(lambda x, a: x, {"a": float("nan")}, name="f"), "start=nan must be"),
        (lambda: pc.activation(lambda x: x, name="a b"), "must be letters, digits"),
        (lambda: pc.activation(lambda x: x, name="gelu"), "is a row of the table"),
        (lambda: pc.activation(lambda x: x, name="f", flops=-1), "flops=-1 must be"),
        (lambda: pc.Parameter(0.0, per="chanel"), "Did you mean 'channel'"),  # pyright: ignore
        (lambda: pc.Parameter(0.0, role="coeff"), "Unknown role of a parameter"),  # pyright: ignore
        (lambda: pc.Parameter(0.0, per="group", groups=0), "groups=0 must be"),
        (lambda: pc.activation(lambda x, axis_name: x, {"axis_name": 1.0}, name="f"), "axis_name"),
        (lambda: pc.activation(lambda x, function: x, {"function": 1.0}, name="f"), "'function'"),
        (lambda: pc.activation(lambda x, **p: x, {"a b": 1.0}, name="f"), "a name as Python"),
        (lambda: ACT.apply({}, jnp.ones((2, 8))), "expected parameters of shapes"),
    ],
)
def test_misuse_is_told_in_one_line(call, message):
    with pytest.raises(pc.InputError, match=message) as told:
        call()
    assert "\n" not in str(told.value)
