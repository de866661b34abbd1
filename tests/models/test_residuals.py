"""What is kept for the backward pass: of the hidden width nothing but pre-activations."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import TINY

import polycom_jax as pc
from polycom_jax import params as pm
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.poly_norm import poly_norm_glu
from polycom_jax.models import ModelConfig, hidden, layers, specs

BATCH, LENGTH, WIDTH = 2, 12, 40
"""The hidden width is that of nothing else here."""

SMALL = replace(TINY, vocab_size=50, num_layers=3, gated_width=WIDTH, ffn_width=WIDTH)


def kept(f: Any, *args: Any) -> list[jax.ShapeDtypeStruct]:
    """Arrays that `jax.vjp` keeps of f(*args): the leaves of the function it returns."""
    return jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *args))


def shapes(arrays: list[Any]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(a.shape) for a in arrays)


ROWS = jax.ShapeDtypeStruct((6, WIDTH), jnp.bfloat16)
COEFFS = jax.ShapeDtypeStruct((4,), jnp.float32)


@pytest.mark.parametrize(
    ("operation", "rows", "numbers"),
    [(pc.poly_norm, 1, 4), (pc.poly_relu, 1, 0), (poly_norm_glu, 2, 4)],
)
@pytest.mark.parametrize("implementation", ["xla", "cpu", "tpu"])
def test_an_operation_keeps_its_arguments_and_a_few_numbers_a_row(
    operation: Any, rows: int, numbers: int, implementation: Any
):
    if operation is pc.poly_relu and implementation == "tpu":
        pytest.skip("it has no such version")
    arrays = kept(partial(operation, implementation=implementation), *[ROWS] * rows, COEFFS)
    # PolyNorm: each row's scale and inverse RMS, too, or it is read once more for them.
    assert shapes(arrays) == +Counter({(6, WIDTH): rows, (4,): 1, (6, 1): numbers})
    # In their own dtypes.
    assert {a.dtype for a in arrays if a.shape[-1] == WIDTH} == {jnp.dtype(jnp.bfloat16)}


def block_of(cfg: ModelConfig) -> tuple[Any, Any, Any]:
    tree = pm.abstract(layers.ffn_specs(cfg))
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, cfg.embed_dim), jnp.float32)
    return (lambda params, x: layers.ffn(cfg, params, x, None)), tree, x


@pytest.mark.parametrize("activation", ["poly_norm", "poly_relu", "poly_norm_glu", "relu2"])
def test_a_feed_forward_block_keeps_its_pre_activations(activation: str):
    cfg = replace(SMALL, activation=activation)
    found = shapes(kept(*block_of(cfg)))
    tokens = BATCH * LENGTH
    wide = {shape: n for shape, n in found.items() if shape[-1] == WIDTH and shape[0] == tokens}
    assert wide == {(tokens, WIDTH): 2 if cfg.activation_fn.gated else 1}
    assert not [shape for shape in found if len(shape) == 3 and shape[-1] == WIDTH]


def kept_by_the_model(cfg: ModelConfig) -> list[Any]:
    """What a compiled forward pass gives to the backward pass, values and all."""
    rng = np.random.default_rng(0)
    draw = lambda spec: rng.normal(size=spec.shape).astype(spec.dtype)  # noqa: E731
    params = jax.tree.map(draw, pm.abstract(specs(cfg)))
    ids = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, cfg.vocab_size)
    forward = jax.jit(lambda p, ids: jax.vjp(lambda p: hidden(cfg, p, ids)[0], p)[1])
    return jax.tree.leaves(forward(params, ids))


@pytest.mark.parametrize(
    ("remat", "activation"),
    [
        ("none", "poly_norm"),
        ("none", "swiglu"),
        ("dots", "poly_norm"),
        ("attention", "poly_norm"),
        ("full", "poly_norm"),
    ],
)
@pytest.mark.parametrize("target", ["cpu", "tpu"])
def test_between_layers_the_model_keeps_pre_activations_or_inputs(
    remat: Any, activation: str, target: str
):
    cfg = replace(SMALL, activation=activation, remat=remat, attention="xla")
    with compiling_for(target):  # a TPU's versions run here, too
        found = kept_by_the_model(cfg)
    # Layers of a CPU's programs have all tokens in one dimension.
    shapes_of = ((BATCH * LENGTH, WIDTH), (BATCH, LENGTH, WIDTH))
    wide = [x for x in found if x.shape in {(cfg.num_layers, *shape) for shape in shapes_of}]
    distinct = {np.asarray(x).tobytes() for x in wide}
    pre_activations = 2 if cfg.activation_fn.gated else 1
    assert len(distinct) == (pre_activations if remat in ("none", "dots") else 0)
    assert len(wide) == len(distinct)
    if remat != "none":
        # q stands for all that attention reads.
        heads = (cfg.num_layers, BATCH, LENGTH, cfg.num_heads, cfg.head_dim)
        assert (heads in {x.shape for x in found}) == (remat != "full")
    if remat == "full":
        lead = (cfg.num_layers, BATCH, LENGTH)
        of_layers = [x.shape for x in found if x.shape[:3] == lead]
        assert of_layers == [(*lead, cfg.embed_dim)]
        assert not [x.shape for x in found if x.shape[:2] == (cfg.num_layers, BATCH * LENGTH)]


@pytest.mark.parametrize(("remat", "numbers"), [("dots", 4), ("attention", 4), ("full", 0)])
def test_for_accelerators_the_scale_and_inverse_rms_of_each_row_are_kept_beside_its_product(
    remat: Any, numbers: int
):
    cfg = replace(SMALL, activation="poly_norm", remat=remat, attention="xla")
    with compiling_for("tpu"):
        found = kept_by_the_model(cfg)
    rows = [x for x in found if x.shape == (cfg.num_layers, BATCH, LENGTH, 1)]
    assert len({np.asarray(x).tobytes() for x in rows}) == numbers
    # `split_cotangent` has two derivatives, each with its own; equal ones are one to XLA.
    assert len(rows) <= 2 * numbers


@pytest.mark.parametrize("target", ["gpu", "tpu"])
def test_for_accelerators_an_rms_norm_keeps_its_input_and_scale(target: str):
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.bfloat16)
    scale = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    with compiling_for(target):
        arrays = kept(partial(layers.rms_norm, eps=1e-5), x, scale)
    assert {(a.shape, a.dtype) for a in arrays} == {(a.shape, a.dtype) for a in (x, scale)}
    assert len(arrays) == 2


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
@pytest.mark.parametrize("target", ["gpu", "tpu"])
def test_for_accelerators_nothing_of_the_residual_stream_is_kept_in_float32(
    target: str, remat: Any
):
    cfg = replace(SMALL, remat=remat, attention="xla", dtype="bfloat16")
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    with compiling_for(target):
        found = kept(lambda p, ids: hidden(cfg, p, ids)[0], pm.abstract(specs(cfg)), ids)
    streams = [x for x in found if x.shape[-3:] == (BATCH, LENGTH, cfg.embed_dim)]
    assert streams
    assert {x.dtype for x in streams} == {jnp.dtype(jnp.bfloat16)}


def test_an_rms_norm_has_the_same_values_and_derivatives_on_every_backend():
    x, dx = jax.random.normal(jax.random.key(0), (2, BATCH, LENGTH, WIDTH))
    scale, dscale = jax.random.normal(jax.random.key(1), (2, WIDTH))

    def norm(x: Any, scale: Any) -> Any:
        return layers.rms_norm(x, scale, 1e-5)

    def derivatives(x: Any, scale: Any) -> Any:
        gradient = jax.grad(lambda *p: jnp.sum(norm(*p) ** 3), (0, 1))
        changes = (dx, dscale)
        return jax.jvp(norm, (x, scale), changes), jax.jvp(gradient, (x, scale), changes)

    plain = jax.jit(derivatives)(x, scale)
    with compiling_for("gpu"):
        lean = jax.jit(lambda *p: derivatives(*p))(x, scale)
    for a, b in zip(jax.tree.leaves(lean), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
