"""The feed-forward block as it is built for a TPU, on a CPU: the same numbers, another program."""

import contextlib
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import models
from polycom_jax import params as pm
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.poly_norm.row_stats import LARGEST
from polycom_jax.kernels.sharded import rows_are_local
from polycom_jax.models import layers
from polycom_jax.sharding import Rules, make_mesh

SMALL = replace(models.preset("tiny"), dtype="float32")


def block(activation: str, remat: Any = "dots", implementation: Any = None) -> tuple[Any, Any, Any]:
    """A function that no trace has seen, and what it is applied to."""
    options = replace(SMALL.activation_options, implementation=implementation)
    cfg = replace(SMALL, activation=activation, remat=remat, activation_options=options)
    params = pm.init(layers.ffn_specs(cfg), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 8, cfg.embed_dim))
    return (lambda params, x: layers.ffn(cfg, params, x, None)), params, x


@pytest.mark.parametrize(
    ("activation", "remat"),
    [
        ("poly_norm", "none"),
        pytest.param("poly_norm", "dots", marks=pytest.mark.slow),
        ("poly_norm_glu", "dots"),
        ("poly_relu_norm", "none"),
        pytest.param("poly_relu", "dots", marks=pytest.mark.slow),
        pytest.param("swiglu", "none", marks=pytest.mark.slow),
    ],
)
def test_a_tpu_s_block_has_the_values_and_gradients_of_a_cpu_s(activation: str, remat: Any):
    def everything() -> Any:
        f, params, x = block(activation, remat)

        def loss(params: Any, x: Any) -> Any:
            return jnp.sum(jnp.sin(f(params, x)))

        slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
        ones = jax.tree.map(jnp.ones_like, (params, x))
        return slopes, jax.jit(lambda *at: jax.jvp(loss, at, ones))(params, x)

    plain = everything()
    with compiling_for("tpu"):
        twice = everything()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(twice), strict=True):
        # Sums over up to 10^4 terms of float32, in another order.
        assert jnp.max(jnp.abs(a - b)) <= 2**-24 * 10**2 * jnp.max(jnp.abs(a))


def barriers(activation: str) -> int:
    # The version "tpu" has a barrier of its own.
    f, params, x = block(activation, implementation="xla")
    gradient = jax.grad(lambda params, x: jnp.sum(f(params, x)))
    return str(jax.make_jaxpr(gradient)(params, x)).count("optimization_barrier")


def test_only_where_a_gradient_waits_for_sums_over_rows_is_it_formed_twice():
    names = ("poly_norm", "poly_norm_glu", "poly_relu_norm", "poly_relu")
    with compiling_for("tpu"):
        assert [barriers(name) for name in names] == [1, 1, 1, 0]
    assert barriers("poly_norm") == 0


def slices(split: Any) -> int:
    cfg = replace(SMALL, activation="poly_norm", ffn_width=300)
    params = pm.abstract(layers.ffn_specs(cfg))
    x = jax.ShapeDtypeStruct((8, 8, cfg.embed_dim), jnp.float32)
    mesh = jax.set_mesh(make_mesh(**{"data": 1} | split)) if split else contextlib.nullcontext()
    with compiling_for("tpu"), mesh:
        f = lambda p, x: layers.ffn(cfg, p, x, Rules() if split else None)  # noqa: E731
        traced = jax.make_jaxpr(lambda p, x: jax.vjp(f, p, x)[0])
        return str(traced(params, x)).count(" slice[")


def test_rows_are_cut_for_their_sums_where_no_mesh_axis_splits_them():
    # Of rows that lie on several devices, GSPMD would move what is cut to another one.
    whole = slices({"data": 4, "tensor": 2})
    # Three parts, for each of the two derivatives of `split_cotangent`.
    assert [slices(split) - whole for split in (None, {"fsdp": 8}, {"tensor": 8})] == [6, 6, 0]


@pytest.mark.parametrize("target", ["cpu", "tpu"])
def test_a_device_decides_by_itself_whether_its_rows_must_be_scaled(target: str):
    f, params, x = block("poly_norm", implementation="reference")
    cfg = replace(SMALL, activation="poly_norm")
    x = jnp.concatenate([x] * 4)
    # The powers of one row overflow, on one device.
    params["w_up"] = params["w_up"].at[0].multiply(1e7)
    x = x.at[:, :, 0].set(0.0).at[3, 2, 0].set(1e4)
    (hidden,) = layers.pre_activations(cfg, params, x, None)
    sums = jnp.sum(hidden**6, axis=-1)
    assert jnp.sum(jnp.isinf(sums)) == jnp.sum(sums > LARGEST) == 1
    dy = jax.random.normal(jax.random.key(2), x.shape)

    def both(f: Any) -> Any:
        def run(params: Any, x: Any, dy: Any) -> Any:
            y, pull = jax.vjp(f, params, x)
            return y, pull(dy)

        return run

    wanted = jax.jit(both(f))(params, x, dy)
    mesh = make_mesh(data=8)
    batch = jax.NamedSharding(mesh, jax.P("data"))
    x, dy = jax.device_put((x, dy), batch)
    with compiling_for(target), jax.set_mesh(mesh):
        split = both(lambda p, x: layers.ffn(cfg, p, x, Rules()))
        program = jax.jit(split).lower(params, x, dy).compile()
        got = program(params, x, dy)
    text = str(program.as_text())
    assert "conditional(" in text
    assert not [line for line in text.splitlines() if "pred[]" in line and "all-reduce" in line]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        # Sums over up to 10^4 terms of float32, in another order.
        assert jnp.max(jnp.abs(a - b)) <= 2**-24 * 10**2 * jnp.max(jnp.abs(b))


def test_rows_that_a_device_does_not_have_for_itself_are_left_to_gspmd():
    shapes = {(8, 8, 64): True, (4, 8, 64): False, (64, 64): True, (12, 64): False}
    for mesh in (make_mesh(data=8), make_mesh(data=1, fsdp=4, expert=2)):
        with jax.set_mesh(mesh):
            assert {shape: rows_are_local(Rules(), jnp.zeros(shape)) for shape in shapes} == shapes
    with jax.set_mesh(make_mesh(data=4, tensor=2)):
        assert not rows_are_local(Rules(), jnp.zeros((8, 8, 64)))
        # The others of an axis that splits nothing would have the same rows.
        assert not rows_are_local(Rules(mlp=None), jnp.zeros((8, 8, 64)))
    assert not rows_are_local(Rules(), jnp.zeros((8, 64)))
