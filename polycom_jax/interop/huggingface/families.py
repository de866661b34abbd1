"""What `transformers` has that ours are read from and written as: one row a `model_type`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polycom_jax.interop.huggingface.rope import APERTUS as APERTUS_ROPE
from polycom_jax.models.config import QkNorm

GATES: Mapping[str, str] = {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}
"""transformers' `hidden_act` of a gate: our row."""

PLAIN: Mapping[str, str] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    **{name: name for name in ("xielu", "relu", "relu2", "gelu", "silu", "tanh", "mish")},
}
"""transformers' `hidden_act` of a block without a gate: our row."""

IN_TORCH = (
    *("poly_norm", "poly_relu", "poly_prelu", "poly_relu_norm", "poly_norm_glu"),
    *("relu", "relu2", "gelu", "gelu_tanh", "silu", "tanh"),
    *("gelu_norm", "relu2_norm", "swiglu_norm"),
)
"""Activations that our PyTorch files compute; transformers computes those of `GATES`
without them, and in Apertus those of `PLAIN`."""


@dataclass(frozen=True)
class Family:
    """One `model_type` of `transformers`, or of our own PyTorch file.

    Attributes:
        name: what messages call it.
        architecture: the class that computes it.
        moe: are its feed-forward blocks mixtures of experts.
        qk_norm: what it does to queries and keys.
        head_dim: has its configuration class that field.
        activations: its `hidden_act`: our row; none where the class is ours, and reads our notes.
        defaults: what an absent field means, as in transformers' configuration classes.
        rope: what `rope_parameters` are where nothing is said of them; None: not rescaled.
        file: of `torch_models`, where the class is ours.
    """

    name: str
    architecture: str
    moe: bool
    qk_norm: QkNorm
    head_dim: bool
    activations: Mapping[str, str]
    defaults: Mapping[str, Any]
    rope: Mapping[str, Any] | None = None
    file: str | None = None


_LLAMA: Mapping[str, Any] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_OLMOE: Mapping[str, Any] = {
    **_LLAMA,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.01,
}
_APERTUS: Mapping[str, Any] = {
    **_LLAMA,
    "hidden_act": "xielu",
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 3,
}

_DENSE: Any = {"moe": False, "qk_norm": "none", "head_dim": True, "defaults": _LLAMA}
_MOE: Any = {"moe": True, "qk_norm": "full", "head_dim": False, "defaults": _OLMOE}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama", "LlamaForCausalLM", activations=GATES, **_DENSE),
    "olmoe": Family("OLMoE", "OlmoeForCausalLM", activations=GATES, **_MOE),
    "apertus": Family(
        "Apertus",
        "ApertusForCausalLM",
        moe=False,
        qk_norm="head",
        head_dim=False,
        activations=PLAIN,
        defaults=_APERTUS,
        rope=APERTUS_ROPE,
    ),
    "polycom_llama": Family(
        "Llama",
        "PolyComLlamaForCausalLM",
        activations={},
        file="modeling_polycom_llama",
        **_DENSE,
    ),
    "polycom_olmoe": Family(
        "OLMoE", "PolyComOlmoeForCausalLM", activations={}, file="modeling_polycom_olmoe", **_MOE
    ),
}

NOT_READ: Mapping[str, str] = {
    "motif": "Motif's models have differential attention, which ours do not. What fits is the"
    " activation of their feed-forward blocks: it is poly_norm_glu, and"
    " polycom_jax.interop.upstream.from_official reads its coefficients",
}
"""Start of a `model_type`: why no model of that kind is read."""
