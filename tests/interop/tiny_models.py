"""Models of a few thousand numbers for both ways between us and Hugging Face folders."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import SMALL

from polycom_jax import models
from polycom_jax.models import ModelConfig, MoEConfig

DENSE = replace(
    SMALL, vocab_size=24, embed_dim=16, num_heads=4, head_dim=4, gated_width=8, context_length=64
)
MOE = replace(DENSE, moe=MoEConfig(num_experts=4, top_k=2), qk_norm="full")
OWN = replace(MOE, moe=replace(MOE.moe, coefficients="expert", normalize_top_k=True))
"""Each expert has its own coefficients."""


def same(one: Any, other: Any) -> None:
    """Equal trees, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def values(cfg: ModelConfig) -> Any:
    """Parameters that all differ, padding rows zero."""
    specs = models.specs(cfg)
    seed = iter(range(1000))

    def one(spec):
        value = np.random.default_rng(next(seed)).normal(size=spec.shape).astype(np.float32)
        if spec.rows is not None:
            value[spec.rows :] = 0
        return jnp.asarray(value)

    return jax.tree.map(one, specs, is_leaf=lambda node: hasattr(node, "role"))
