"""What is repeated of a step is what the run did."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.replay import repeat
from polycom_jax import models
from polycom_jax.sharding import make_mesh


@pytest.mark.slow
def test_gradients_are_repeated_that_float16_would_round_to_zero_and_none_that_is_frozen():
    sizes = {"num_layers": 1, "embed_dim": 16, "vocab_size": 40, "context_length": 12}
    cfg = models.preset("tiny", **sizes)
    params = models.init(cfg, jax.random.key(0))
    params["final_norm"] *= 1e-5  # all gradients before it are as much smaller
    tokens = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)
    ones = np.ones_like(tokens)
    rows = {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "mask": ones > 0}
    rows |= {"segment_ids": ones, "positions": np.arange(12, dtype=np.int32) * ones}
    mesh = make_mesh(devices=jax.devices()[:1])
    (_, wanted), (_, found) = (
        repeat(replace(cfg, dtype=dtype), params, rows, mesh) for dtype in ("float32", "float16")
    )
    assert min(wanted.values()) > 0
    _, trained = repeat(cfg, params, rows, mesh, frozenset({"embedding", "coefficient"}))
    left_out = {"embed", "layers.0.ffn.activation.coeffs"}
    assert trained == {name: norm for name, norm in wanted.items() if name not in left_out}
    eps = float(jnp.finfo(jnp.float16).eps)
    for name, norm in wanted.items():
        np.testing.assert_allclose(found[name], norm, rtol=4 * eps, err_msg=name)
