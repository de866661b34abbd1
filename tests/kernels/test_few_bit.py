"""Few-bit backward: exact values, derivatives of a table, and what is kept in the input's place."""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from shapes import TINY

import polycom_jax as pc
from polycom_jax import params as pm
from polycom_jax._errors import InputError
from polycom_jax.activations.derivative_table import SPAN, derivative_table
from polycom_jax.kernels.few_bit import pack, packed_axis, unpack
from polycom_jax.models import MoEConfig, hidden, layers, specs
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.table import ACTIVATIONS, ActivationOptions, get_activation

FEW_BIT = tuple(n for n in ACTIVATIONS if get_activation(n).row.keeps_its_input is None)
BITS = (1, 2, 3, 4)
WIDTH = 40
"""The hidden width is that of nothing else in `CFG`."""

CFG = replace(
    TINY, vocab_size=50, num_layers=2, gated_width=WIDTH, ffn_width=WIDTH, activation="gelu"
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def table_of(name: str, bits: int):
    table = derivative_table(get_activation(name).row.function, bits, name)
    return np.array(table.borders), np.array(table.levels)


def gradient(act: Any, x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, vjp = jax.vjp(lambda x: act.apply({}, x), x)
    return y, vjp(dy)[0]


def draw(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return (2 * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


def test_rows_that_can_do_with_few_bits_are_these():
    smooth = {"gelu", "gelu_tanh", "silu", "tanh", "mish", "softplus"}
    assert set(FEW_BIT) == smooth | {"relu", "elu", "selu"}


@pytest.mark.parametrize("bits", BITS)
def test_the_table_of_gelu_is_as_good_as_the_published_one(bits: int):
    borders, levels = table_of("gelu", bits)
    if bits == 3:
        published = [-2.417, -0.710, -0.326, 0, 0.326, 0.710, 2.415]
        np.testing.assert_allclose(borders, published, atol=2e-3)
        np.testing.assert_allclose(
            levels, [0, -0.088, 0.126, 0.372, 0.628, 0.875, 1.088, 1], atol=1e-3
        )
    x = np.linspace(-8, 8, 20001)
    weight = np.exp(-x * x / 2)
    exact = 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5)) + x * weight / (2 * np.pi) ** 0.5
    error = (levels[np.searchsorted(borders, x)] - exact) ** 2
    found = np.sqrt(np.average(error, weights=weight))
    # Searched by gradient steps, the published four bits end in a worse minimum than ours.
    least, most = {1: (0.21, 0.22), 2: (0.094, 0.096), 3: (0.057, 0.059), 4: (0.025, 0.031)}[bits]
    assert least < found < most


@pytest.mark.parametrize("name", ["silu", "mish"])
def test_levels_are_means_and_borders_lie_where_two_levels_are_equally_near(name: str):
    borders, levels = table_of(name, 3)
    act = get_activation(name)
    with jax.enable_x64(True):
        slope = np.vectorize(jax.jit(jax.grad(lambda x: act.apply({}, x))), otypes=[float])
        middle = slope(borders)
        ends = np.array([-SPAN, *borders, SPAN])
        values = np.asarray(act.apply({}, jnp.asarray(ends)))
    np.testing.assert_allclose(middle, (levels[1:] + levels[:-1]) / 2, atol=1e-4)
    np.testing.assert_allclose(levels, np.diff(values) / np.diff(ends), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("gelu", jnp.float16), ("gelu", jnp.bfloat16), *((name, jnp.float32) for name in FEW_BIT)],
)
def test_the_value_is_exact_and_the_derivative_the_table_s(name: str, dtype: Any):
    x, dy = draw(9, 24, dtype=dtype), draw(9, 24, seed=1, dtype=dtype)
    y, dx = jax.jit(gradient, static_argnums=0)(get_activation(name, bits=2), x, dy)
    exact = jax.jit(lambda x: get_activation(name).apply({}, x))(x)
    np.testing.assert_array_equal(np.asarray(y), np.asarray(exact))
    borders, levels = (np.asarray(each, np.float32) for each in table_of(name, 2))
    wide = np.asarray(x, np.float32)
    wanted = np.asarray(dy, np.float32) * levels[np.searchsorted(borders, wide)]
    np.testing.assert_array_equal(np.asarray(dx), np.asarray(jnp.asarray(wanted).astype(dtype)))
    assert (y.dtype, dx.dtype) == (dtype, dtype)


@pytest.mark.parametrize("shape", [(), (7,), (16, 5), (9, 11), (2, 3, 8), (0, 4)])
def test_bits_come_back_and_an_element_takes_no_more_than_its_bit(shape: tuple[int, ...]):
    bit = draw(*shape) > 0
    axis = packed_axis(bit)
    packed = jax.jit(pack, static_argnums=1)(bit, axis)
    back = jax.jit(lambda packed: unpack(packed, axis, shape))(packed)
    np.testing.assert_array_equal(back, bit)
    sizes = list(shape) or [1]
    sizes[axis] = -(-sizes[axis] // 8)
    assert packed.shape == tuple(sizes)
    assert packed.dtype == jnp.uint8


@pytest.mark.parametrize("bits", BITS)
def test_an_operation_keeps_its_bits_alone(bits: int):
    act = get_activation("gelu", bits=bits)
    forward = jax.jit(lambda x: jax.vjp(lambda x: act.apply({}, x), x)[1])
    kept = jax.tree.leaves(forward(draw(16, WIDTH, dtype=jnp.bfloat16)))
    assert [leaf.dtype for leaf in kept] == [jnp.uint8]
    assert sum(leaf.nbytes for leaf in kept) == 16 * WIDTH * bits // 8


def wide_bytes(leaves: Any, tokens: int) -> Counter[str]:
    """Bytes of what is kept of the hidden layer, by dtype."""
    found: Counter[str] = Counter()
    for leaf in leaves:
        if leaf.dtype == jnp.uint8 or (leaf.shape[-1] == WIDTH and leaf.size % tokens == 0):
            found[str(leaf.dtype)] += leaf.size * leaf.dtype.itemsize
    return found


@pytest.mark.parametrize("bits", [1, 3])
def test_a_block_keeps_the_hidden_layer_for_its_product_and_bits_in_the_place_of_the_input(bits):
    cfg = replace(CFG, activation_options=ActivationOptions(bits=bits))
    tree = pm.abstract(layers.ffn_specs(cfg))
    x = jax.ShapeDtypeStruct((2, 12, cfg.embed_dim), jnp.float32)

    def block(params: Any, x: Any) -> Any:
        return layers.ffn(cfg, params, x, None)

    kept = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(block, *a)[1], tree, x))
    elements = 24 * WIDTH
    assert wide_bytes(kept, 24) == {"float32": 4 * elements, "uint8": elements * bits // 8}


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_models_take_it_under_every_remat(remat: Any, experts: int):
    moe = MoEConfig(num_experts=experts, top_k=2)
    options = ActivationOptions(bits=3)
    cfg = replace(CFG, remat=remat, moe=moe, activation_options=options, unroll=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: rng.normal(size=spec.shape).astype(spec.dtype), pm.abstract(specs(cfg))
    )
    ids = jax.random.randint(jax.random.key(1), (2, 12), 0, cfg.vocab_size)
    rows = 24 * (2 if experts else 1)

    def kept(params: Any) -> Any:
        return jax.vjp(lambda p: hidden(cfg, p, ids)[0], params)[1]

    found = wide_bytes(jax.tree.leaves(jax.eval_shape(kept, params)), cfg.num_layers * rows)
    elements = cfg.num_layers * rows * WIDTH
    assert found["uint8"] == (0 if remat == "full" else elements * 3 // 8)
    assert found["float32"] == (0 if remat == "full" else 4 * elements)


def test_jit_vmap_forward_mode_and_a_scan_with_checkpoint_change_nothing():
    act = get_activation("silu", bits=3)
    x, dy = draw(5, 12), draw(5, 12, seed=1)
    y, dx = gradient(act, x, dy)
    for other in (
        jax.jit(gradient, static_argnums=0)(act, x, dy),
        jax.vmap(lambda x, dy: gradient(act, x, dy))(x, dy),
        jax.jvp(lambda x: act.apply({}, x), (x,), (dy,)),
    ):
        np.testing.assert_array_equal(other[0], y)
        np.testing.assert_array_equal(other[1], dx)

    def looped(x: Any, scan: bool) -> Any:
        def layer(h: Any, _: Any) -> Any:
            return jnp.tanh(act.apply({}, h)), None

        if scan:
            return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, length=2)[0])
        return jnp.sum(layer(layer(x, None)[0], None)[0])

    scanned, plain = (jax.jit(jax.grad(looped), static_argnums=1)(x, s) for s in (True, False))
    np.testing.assert_allclose(scanned, plain, rtol=1e-6)


def test_on_a_mesh_nothing_more_is_sent():
    mesh, rules, x = make_mesh(data=2, tensor=4), Rules(), draw(4, 32, CFG.embed_dim)
    found: dict[int | None, Any] = {}
    for bits in (None, 3):
        cfg = replace(CFG, activation_options=ActivationOptions(bits=bits))
        tree = {"ffn": layers.ffn_specs(cfg)}
        params = pm.init(tree, jax.random.key(0))["ffn"]

        def loss(params: Any, x: Any, rules: Any, cfg: Any = cfg) -> Any:
            return jnp.sum(jnp.sin(layers.ffn(cfg, params, x, rules)))

        wanted = jax.jit(jax.grad(loss), static_argnums=2)(params, x, None)
        with jax.set_mesh(mesh):
            split = jax.device_put(params, pm.shardings(tree, mesh, rules)["ffn"])
            program = jax.jit(jax.grad(loss), static_argnums=2).lower(split, x, rules).compile()
            got = program(split, x)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        sent = r"(all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)\("
        found[bits] = Counter(re.findall(sent, str(program.as_text())))
    assert found[3] == found[None]


def test_parts_of_odd_lengths_are_right_too():
    act, mesh = get_activation("gelu", bits=2), make_mesh(data=2, tensor=4)
    x, dy = draw(6, 20), draw(6, 20, seed=1)
    wanted = gradient(act, x, dy)
    split = jax.device_put((x, dy), jax.NamedSharding(mesh, P("data", "tensor")))
    with jax.set_mesh(mesh):
        got = jax.jit(gradient, static_argnums=0)(act, *split)
    np.testing.assert_array_equal(got[1], wanted[1])
    part = jax.shard_map(
        lambda x, dy: gradient(act, x, dy)[1],
        mesh=mesh,
        in_specs=P("data", "tensor"),
        out_specs=P("data", "tensor"),
    )
    np.testing.assert_array_equal(jax.jit(part)(*split), wanted[1])


def test_on_explicit_axes_a_byte_is_not_split():
    act, explicit = get_activation("gelu", bits=2), (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=explicit)

    def slope(*shape: int) -> Any:
        x = jax.device_put(draw(*shape), jax.NamedSharding(mesh, P(*mesh.axis_names)))
        y = jax.jit(jax.grad(lambda x: jnp.sum(act.apply({}, x))))(x)
        assert jax.typeof(y).sharding.spec == P(*mesh.axis_names)
        return y

    with jax.set_mesh(mesh):
        slope(16, 4)
        slope(2, 32)
        with pytest.raises(InputError, match=r"float32\[8, 24\] on a mesh of explicit axes"):
            slope(8, 24)


def test_a_second_derivative_is_refused():
    act = get_activation("gelu", bits=2)

    def slope(x: Any) -> Any:
        return jax.grad(lambda x: act.apply({}, x))(x)

    with pytest.raises(InputError, match=r"bits=2: gelu has first derivatives alone.*zero"):
        jax.grad(slope)(jnp.float32(0.5))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swiglu", "gate and up are kept"),
        ("prelu", "gradients of its parameters read its input"),
        ("poly_norm", "gradients of its parameters read its input"),
        ("gelu_norm", "depends on the whole row"),
        ("relu2", "grows without bound"),
    ],
)
def test_where_few_bits_do_not_do_the_reason_is_told(name: str, reason: str):
    with pytest.raises(InputError, match=f"bits=2: activation '{name}' has no few-bit.*{reason}"):
        get_activation(name, bits=2)


@pytest.mark.parametrize("bits", [0, 5])
def test_other_numbers_of_bits_are_refused(bits: int):
    with pytest.raises(InputError, match=f"bits={bits} must be from 1 to 4"):
        ActivationOptions(bits=bits)


def test_a_user_s_function_has_it_too_if_its_derivative_settles():
    x = draw(4, 8)
    act = pc.activation(lambda x: x / (1 + jnp.abs(x)), name="softsign")
    _, dx = gradient(get_activation(act, bits=4), x, jnp.ones_like(x))
    exact = gradient(act, x, jnp.ones_like(x))[1]
    assert 0 < float(jnp.max(jnp.abs(dx - exact))) < 0.1
    waves = get_activation(pc.activation(jnp.sin, name="sine"), bits=4)
    with pytest.raises(InputError, match="derivative of sine still changes beyond"):
        gradient(waves, x, x)


def test_without_bits_the_program_is_that_of_the_row():
    act, x = get_activation("gelu"), jnp.ones((2, 8))
    programs = [jax.make_jaxpr(f)(x) for f in (lambda x: act.apply({}, x), act.row.function)]
    assert str(programs[0]) == str(programs[1])
