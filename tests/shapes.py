"""Models that compile in no time; each test replaces what matters to it."""

from dataclasses import replace

from polycom_jax.models import ModelConfig

SMALL = ModelConfig(
    vocab_size=40,
    num_layers=2,
    embed_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    gated_width=32,
    context_length=32,
)
TINY = replace(SMALL, num_layers=1, embed_dim=16, head_dim=8, gated_width=16)
