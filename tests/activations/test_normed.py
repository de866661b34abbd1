"""Baselines behind an RMSNorm: rows split over devices, and large numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from polycom_jax.activations.normed import gelu_norm, relu2_norm, swiglu_norm, unit_rms
from polycom_jax.sharding import make_mesh
from polycom_jax.table import get_activation


# jax's erf does not pass shard_map's check; models switch it off in any case.
@pytest.mark.parametrize(
    ("f", "check"), [(gelu_norm, False), (relu2_norm, True), (swiglu_norm, False)]
)
def test_rows_split_over_a_mesh_axis_are_normalised_whole(f, check):
    count = 2 if f is swiglu_norm else 1
    hidden = [3 * jax.random.normal(jax.random.key(seed), (4, 32)) for seed in range(count)]
    hidden[0] = hidden[0].at[0, :8].multiply(1e6)  # shards of very different size
    dy = jax.random.normal(jax.random.key(9), (4, 32))
    split = jax.shard_map(
        lambda *h: f(*h, axis_name="tensor"),
        mesh=make_mesh(data=2, tensor=4),
        in_specs=P("data", "tensor"),
        out_specs=P("data", "tensor"),
        check_vma=check,
    )
    y, vjp = jax.vjp(jax.jit(split), *hidden)
    wanted, whole_vjp = jax.vjp(f, *hidden)
    # float32 sums of 32 numbers in two orders
    np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=2e-6)
    for got, exact in zip(vjp(dy), whole_vjp(dy), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=2e-6)


def test_no_square_overflows():
    y = unit_rms(jnp.full((1, 4), 1e30), 1e-6)
    np.testing.assert_allclose(y, 1.0, rtol=1e-6)


def test_they_are_their_baseline_over_its_rms():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8)), jnp.float32)
    plain = get_activation("relu2").apply({}, x)
    rms = jnp.sqrt(jnp.mean(plain**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(relu2_norm(x), plain / rms, rtol=1e-6)
