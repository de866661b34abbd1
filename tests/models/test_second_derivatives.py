"""Second derivatives: every activation, on every backend's path, dense and mixture, every mode."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from shapes import SMALL

from polycom_jax import models
from polycom_jax import params as pm
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.models import ModelConfig, MoEConfig, layers
from polycom_jax.models.moe import moe, moe_specs
from polycom_jax.rows import BASELINES, POLYCOM
from polycom_jax.training.loss import batch_nats

BACKENDS = ("cpu", "gpu", "tpu")
QUICK = (("poly_norm", True), ("poly_norm_glu", False), ("swiglu", False))


def config(activation: str, mixture: bool, **more: Any) -> ModelConfig:
    experts = {"moe": MoEConfig(num_experts=3, top_k=2)} if mixture else {}
    shape = {"num_layers": 1, "embed_dim": 6, "num_kv_heads": 1, "head_dim": 4, "gated_width": 8}
    return replace(SMALL, vocab_size=30, activation=activation, **shape, **experts, **more)


def drawn(tree: Any, seed: int, scale: float = 1.0) -> Any:
    """Normal numbers of these shapes."""
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return form.unflatten([scale * jax.random.normal(key, leaf.shape) for key, leaf in pairs])


def block(activation: str, mixture: bool) -> tuple[Callable[[Any], jax.Array], Any, Any]:
    """A loss of a feed-forward block's input and parameters, a point, and a direction."""
    cfg = config(activation, mixture)
    declared = moe_specs(cfg) if mixture else layers.ffn_specs(cfg)
    shapes = {"x": jax.ShapeDtypeStruct((2, 5, 6), jnp.float32), "params": pm.abstract(declared)}

    def loss(at: Any) -> jax.Array:
        if mixture:
            out, _ = moe(cfg, at["params"], at["x"], None)
        else:
            out = layers.ffn(cfg, at["params"], at["x"], None)
        return jnp.sum(jnp.sin(out))

    return loss, drawn(shapes, 0, 0.5), drawn(shapes, 1, 0.5)


def dot(a: Any, b: Any) -> jax.Array:
    parts = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), a, b))
    return sum(parts, jnp.float32(0))


def forward_over_reverse(loss: Any, at: Any, along: Any) -> Any:
    return jax.jvp(jax.grad(loss), (at,), (along,))[1]


def reverse_over_reverse(loss: Any, at: Any, along: Any) -> Any:
    return jax.grad(lambda at: dot(jax.grad(loss)(at), along))(at)


def reverse_over_forward(loss: Any, at: Any, along: Any) -> Any:
    return jax.grad(lambda at: jax.jvp(loss, (at,), (along,))[1])(at)


def forward_over_forward(loss: Any, at: Any, along: Any) -> Any:
    return jax.jvp(lambda at: jax.jvp(loss, (at,), (along,))[1], (at,), (along,))[1]


def products(loss: Any, at: Any, along: Any, *modes: Callable[..., Any]) -> Any:
    """One program for all of them: operation by operation each would be hundreds.

    Its function is new at each call, so that a program for another backend is never taken for it.
    """
    return jax.jit(lambda at, along: [f(loss, at, along) for f in modes])(at, along)


def assert_near(got: Any, wanted: Any, tolerance: float) -> None:
    """Leaf by leaf, in the norm."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert jnp.linalg.norm(a - b) <= tolerance * jnp.linalg.norm(b)


@pytest.mark.parametrize(
    ("activation", "mixture"),
    [
        pytest.param(
            name,
            mixture,
            marks=() if (name, mixture) in QUICK else pytest.mark.slow,
            id=f"{name}-{'mixture' if mixture else 'dense'}",
        )
        for name in (*POLYCOM, *BASELINES, "xielu", "asqu")
        for mixture in (False, True)
    ],
)
def test_hessian_vector_products_are_differences_of_gradients(activation: str, mixture: bool):
    loss, at, along = block(activation, mixture)
    # float32 keeps half of its digits of a difference over so small a step.
    step = 2.0**-12

    gradient = jax.jit(jax.grad(loss))

    def slope(sign: int) -> Any:
        return gradient(jax.tree.map(lambda a, d: a + sign * step * d, at, along))

    wanted = jax.tree.map(lambda a, b: (a - b) / (2 * step), slope(1), slope(-1))
    for backend in BACKENDS:
        with compiling_for(backend):
            (got,) = products(loss, at, along, forward_over_reverse)
        assert_near(got, wanted, 2**-7)


@pytest.mark.parametrize(
    "mixture", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["dense", "mixture"]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_order_of_modes_gives_the_same(backend: str, mixture: bool):
    loss, at, along = block("poly_norm_glu", mixture)
    others = reverse_over_reverse, reverse_over_forward, forward_over_forward
    with compiling_for(backend):
        wanted, *got, twice = products(loss, at, along, forward_over_reverse, *others)
    for product in got:
        # Sums of up to 10^3 terms of float32, in another order.
        assert_near(product, wanted, 2**-24 * 10**3)
    assert_near(twice, dot(wanted, along), 2**-24 * 10**3)


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_coefficients_and_matrices_have_mixed_derivatives(backend: str):
    """A derivative in one of them alone does not let go of the other."""
    loss, at, along = block("poly_norm", mixture=False)

    def of(coeffs: Any, w_up: Any) -> jax.Array:
        params = {**at["params"], "activation": coeffs, "w_up": w_up}
        return loss({**at, "params": params})

    coeffs, w_up = at["params"]["activation"], at["params"]["w_up"]
    ways = along["params"]["activation"], along["params"]["w_up"]

    def slope(w_up: Any) -> Any:
        return dot(jax.grad(of)(coeffs, w_up), ways[0])

    def other(coeffs: Any) -> Any:
        return dot(jax.grad(of, argnums=1)(coeffs, w_up), ways[1])

    def mixed(w_up: Any, coeffs: Any) -> Any:
        one = jax.jvp(slope, (w_up,), (ways[1],))[1]
        return one, jax.jvp(other, (coeffs,), (ways[0],))[1]

    with compiling_for(backend):
        one, two = jax.jit(mixed)(w_up, coeffs)
    assert_near(one, two, 2**-24 * 10**3)


@pytest.mark.slow
@pytest.mark.parametrize("mixture", [False, True], ids=["dense", "mixture"])
def test_a_model_s_loss_has_them_through_blocks_of_attention_and_chunks_of_logits(mixture: bool):
    fast = config("poly_norm", mixture, attention="blocks", loss_chunk=4)
    plain = config("poly_norm", mixture, attention="xla")
    ids = jax.random.randint(jax.random.key(0), (2, 7), 0, 30, jnp.int32)
    places = jnp.tile(jnp.arange(7, dtype=jnp.int32)[None], (2, 1))
    batch = {"tokens": ids, "targets": ids[::-1], "segment_ids": places // 4, "positions": places}
    batch["mask"] = places < 6
    shapes = pm.abstract(models.specs(fast))
    at, along = drawn(shapes, 0, 0.5), drawn(shapes, 1, 0.5)

    def loss(cfg: ModelConfig) -> Callable[[Any], jax.Array]:
        return lambda params: batch_nats(cfg, params, batch)[0]

    (wanted,) = products(loss(plain), at, along, forward_over_reverse)
    for got in products(loss(fast), at, along, forward_over_reverse, reverse_over_forward):
        assert_near(got, wanted, 2**-24 * 10**4)
