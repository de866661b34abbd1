"""Named model shapes. How each is trained stands in `polycom_jax.training.recipes`."""

from dataclasses import fields, replace
from typing import Any

from polycom_jax._errors import unknown
from polycom_jax.models.config import ModelConfig, MoEConfig

# Ours: learns Python's syntax on two CPU cores in minutes. Wide rather than deep, since small
# matrices leave a CPU idle; tied, since half of so small a model would be embeddings.
_TINY = ModelConfig(
    vocab_size=2048,
    num_layers=4,
    embed_dim=192,
    num_heads=4,
    num_kv_heads=4,
    head_dim=48,
    gated_width=512,
    context_length=256,
    tie_embeddings=True,
)

_PRESETS: dict[str, ModelConfig] = {
    "tiny": _TINY,
    # Ours: GPT-2 small's depth and width with a Llama block; tied, so that 110M is mostly blocks.
    "dense-110m": ModelConfig(
        vocab_size=32_000,
        num_layers=12,
        embed_dim=768,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        gated_width=2048,
        context_length=1024,
        tie_embeddings=True,
        dtype="bfloat16",
    ),
    # Ours: GPT-3 Medium's depth and width with a Llama block, between the two beside it.
    "dense-350m": ModelConfig(
        vocab_size=32_000,
        num_layers=24,
        embed_dim=1024,
        num_heads=16,
        num_kv_heads=16,
        head_dim=64,
        gated_width=2816,
        context_length=1024,
        tie_embeddings=True,
        dtype="bfloat16",
    ),
    # The paper's dense model (official run_pretrain_megatron_llama.sh, MODEL_SIZE=1.3B). Megatron
    # neither resets attention nor positions at document ends by default.
    "dense-1b": ModelConfig(
        vocab_size=32_000,
        num_layers=24,
        embed_dim=2048,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        gated_width=5504,
        document_mask=False,
        dtype="bfloat16",
        remat="full",
    ),
    # Llama-2 7B (Touvron et al. 2023).
    "llama-7b": ModelConfig(
        vocab_size=32_000,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        gated_width=11_008,
        activation="swiglu",
        document_mask=False,
        dtype="bfloat16",
        remat="full",
    ),
    # Ours: "tiny" with eight experts of half its width, of which a token goes to two: the same
    # active parameters, on two CPU cores.
    "moe-tiny": replace(
        _TINY,
        gated_width=256,
        moe=MoEConfig(num_experts=8, top_k=2),
        qk_norm="full",
        init="olmo",
    ),
    # The paper's mixture: OLMoE 1B-7B (Muennighoff et al. 2024) with experts of width 1536 in place
    # of 1024 gated (OLMoE-1B-7B-0924_PolyNorm.yml of BryceZhuo/PolyCom). Documents are packed
    # without a boundary.
    "moe-1b-7b": ModelConfig(
        vocab_size=50_280,
        num_layers=16,
        embed_dim=2048,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        gated_width=1024,
        moe=MoEConfig(num_experts=64, top_k=8),
        qk_norm="full",
        document_mask=False,
        init="olmo",
        dtype="bfloat16",
        remat="full",
    ),
}

PRESETS: tuple[str, ...] = tuple(_PRESETS)
"""The names that `preset` knows."""


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The configuration called `name`, with some fields replaced.

    Raises:
        InputError: no such preset, no such field, or a value that the configuration refuses.
    """
    if name not in _PRESETS:
        raise unknown("model preset", name, _PRESETS)
    known = {field.name for field in fields(ModelConfig)}
    for field in overrides:
        if field not in known:
            raise unknown("model field", field, known)
    return replace(_PRESETS[name], **overrides)
