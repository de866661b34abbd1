"""What XLA's compiler for GPUs says; it needs JAX's CUDA plugin (extra plan-gpu), and no GPU."""

import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import compile_ahead as aot
from polycom_jax import get_activation
from polycom_jax import params as pm
from polycom_jax.kernels.attention import attention
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.sharded import unsharded_features

pytestmark = pytest.mark.gpu_backend

with_cudnn = pytest.mark.skipif(
    find_spec("nvidia") is None or find_spec("nvidia.cudnn") is None,
    reason="JAX lowers cuDNN's attention only where nvidia-cudnn-cu13 is installed",
)


def compiled(card: str, f: Callable[..., Any], *trees: Any, **options: Any) -> jax.stages.Compiled:
    device, capability = aot.devices(card)[0], aot.GPUS[card].compute_capability
    with compiling_for("gpu", capability), unsharded_features(True):
        return aot.compile(f, *aot.place(trees, device), **options)


def predicted(card: str, f: Callable[..., Any], *trees: Any, **options: Any) -> aot.Prediction:
    return aot.predict(compiled(card, f, *trees, **options))


def matrix(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("card", aot.GPUS)
def test_every_card_can_be_compiled_for(card: str):
    devices = aot.devices(card, "4")
    assert len(devices) == 4
    assert {device.device_kind for device in devices} == {aot.GPUS[card].device_kind}
    assert {device.compute_capability for device in devices} == {aot.GPUS[card].compute_capability}
    prediction = predicted(card, lambda x: 2 * x + 1, matrix(2**12, 4096))
    assert prediction.kernels == 1
    assert prediction.bytes_accessed == prediction.floor_bytes == 2 * 2**12 * 4096 * 2
    assert prediction.seconds == pytest.approx(2**26 / aot.GPUS[card].hbm_bandwidth)


@pytest.mark.parametrize("products", aot.PRODUCT_BACKENDS)
@pytest.mark.parametrize("card", ["t4", "h100"])
def test_a_large_product_takes_its_flops(card: str, products: str):
    n, xla = 4096, aot.PRODUCT_BACKENDS[products]
    x = matrix(n, n, dtype=jnp.float16)
    prediction = predicted(card, jnp.dot, x, x, compiler_options=xla)
    assert prediction.seconds == pytest.approx(2 * n**3 / aot.GPUS[card].peak_flops, rel=0.02)


def test_a_t4_has_no_bfloat16():
    x = matrix(4096, 4096)
    prediction = predicted("t4", jnp.dot, x, x)
    assert prediction.seconds > 2 * 4096**3 / aot.GPUS["t4"].peaks["f32"]


# Reads and writes of x that each takes at most, forward and backward: the floor. Triton has no T4,
# where PolyNorm's sums and its polynomial are passes of their own.
FLOOR, GATED = ((1, 1), (2, 1)), ((2, 1), (3, 2))
PASSES = {
    "relu2": FLOOR,
    "poly_relu": FLOOR,
    "poly_norm": FLOOR,
    "poly_relu_norm": FLOOR,
    "poly_norm_glu": GATED,
}
PASSES_OF_T4 = {
    "poly_norm": ((2, 1), (4, 1)),
    "poly_relu_norm": ((2, 1), (4, 1)),
    "poly_norm_glu": ((3, 1), (6, 2)),
}


@pytest.mark.parametrize("card", ["t4", "l4", "a100", "h100"])
@pytest.mark.parametrize("name", PASSES)
def test_passes_over_memory_of_an_activation_alone(name: str, card: str):
    act, x = get_activation(name), matrix(2048, 4096)
    arguments = (pm.abstract(act.specs), *[x] * (2 if act.gated else 1))
    capability = aot.GPUS[card].compute_capability
    with compiling_for("gpu", capability), unsharded_features(True):
        y, pull = jax.eval_shape(lambda *a: jax.vjp(act.apply, *a), *arguments)
    found = (
        predicted(card, lambda *a: act.apply(*a), *arguments),
        predicted(card, lambda pull, dy: pull(dy), pull, y),
    )
    wanted = {**PASSES, **PASSES_OF_T4}[name] if card == "t4" else PASSES[name]
    for prediction, (reads, writes) in zip(found, wanted, strict=True):
        assert prediction.bytes_read / (x.size * 2) < reads + 0.05
        assert prediction.bytes_written / (x.size * 2) < writes + 0.05


def test_a_scan_takes_as_long_as_its_steps():
    def steps(n: int, x: Any, w: Any) -> Any:
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=n)[0]

    x = matrix(1024, 1024)
    once, often = (predicted("a100", partial(steps, n), x, x) for n in (2, 50))
    assert often.not_estimated == ()
    assert 0.9 < often.seconds / once.seconds / 25 < 1.1


def test_what_is_larger_than_the_card_is_refused():
    x = matrix(2**18, 1024, dtype=jnp.float32)
    with pytest.raises(aot.DoesNotFit) as caught:
        compiled("l4", lambda x: jnp.sort(x @ x.T), x)
    assert caught.value.memory == "HBM"
    assert caught.value.needed is not None
    assert caught.value.needed >= 2**36 * 4
    assert caught.value.available == aot.GPUS["l4"].hbm_bytes


def attended(card: str, width: int = 64, window: int | None = None) -> str:
    q = matrix(2, 256, 4, width)
    text = compiled(card, lambda q, k, v: attention(q, k, v, window=window), q, q, q).as_text()
    return text or ""


@with_cudnn
@pytest.mark.parametrize("card", ["a100", "h100", "h200", "b200", "l4"])
def test_attention_is_cudnn_s_where_the_card_has_it(card: str):
    assert "__cudnn$fmhaSoftmax" in attended(card)
    # JAX lowers wider heads only for a card that is here.
    assert "__cudnn" not in attended(card, width=256)


@with_cudnn
def test_a_window_of_attention_is_cudnn_s_own():
    text = attended("h100", window=100)
    assert "__cudnn$fmhaSoftmax" in text
    assert re.search(r'"sliding_window_length":\s*"?100\b', text)


def test_a_t4_computes_attention_by_plain_operations():
    assert "__cudnn" not in attended("t4")
