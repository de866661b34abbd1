"""`config.json` to `ModelConfig` and back: tables of fields, and refusals that name one."""

from collections.abc import Mapping
from typing import Any

from polycom_jax._errors import InputError, require, unknown
from polycom_jax.interop.huggingface.families import (
    FAMILIES,
    GATES,
    IN_TORCH,
    NOT_READ,
    PLAIN,
    Family,
)
from polycom_jax.interop.huggingface.fields import NOTES, check_fields
from polycom_jax.interop.huggingface.rope import read_rope, rope_to_json
from polycom_jax.models import ModelConfig, MoEConfig
from polycom_jax.table import ActivationOptions, get_activation

SECTION = "polycom"
"""Field of config.json that holds what only our models have."""


# Theirs, ours. OLMoE's own folder says 0.01 for a loss that was the mean over its k choices, though
# transformers' loss is k times that; the number goes over as it stands.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embed_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
_MOE_FIELDS = {
    "num_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "norm_topk_prob": "normalize_top_k",
    "router_aux_loss_coef": "load_balance_weight",
}

_ACTIVATION = ("order", "eps", "sigmoid", "bound", "output_scale")
_TRAINED = ("document_mask", "init", "dtype")
_TRAINED_MOE = ("coefficients", "capacity_factor", "router_z_weight")


def from_json(stored: Mapping[str, Any]) -> ModelConfig:
    """The model that a `config.json` describes.

    `ffn_width` is left to the width rule where that gives the stored width. Without a note of ours,
    attention runs over document boundaries, as it does in transformers, and the dtype is the one
    the weights are kept in (float32 for float16 and float64).

    Raises:
        InputError: another family, a field that is missing or of another kind, or one that our
            models have no counterpart of.
    """
    model_type = stored.get("model_type")
    for start, why in NOT_READ.items():
        if str(model_type).lower().startswith(start):
            raise InputError(f"config.json: model_type={model_type!r}: {why}.")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise unknown("model_type in config.json", model_type, FAMILIES)
    check_fields(stored)
    try:
        return _model(stored, FAMILIES[model_type])
    except InputError as error:
        if "config.json" in str(error):
            raise
        raise InputError(f"config.json describes no model of ours: {error}") from error


def _model(stored: Mapping[str, Any], family: Family) -> ModelConfig:
    fields = _completed(stored, family)
    ours: Mapping[str, Any] = stored.get(SECTION, {})
    _check_section(ours, family)
    activation, options = _activation(fields, ours, family)
    values = {mine: fields[theirs] for theirs, mine in _FIELDS.items()}
    width, row = fields["intermediate_size"], get_activation(activation, options)
    gated_width = width if row.gated or width % 3 else width * 2 // 3
    by_rule = row.gated or width % 3 == 0
    moe = {}
    if family.moe:
        moe = {mine: fields[theirs] for theirs, mine in _MOE_FIELDS.items()}
        moe |= {name: ours[name] for name in _TRAINED_MOE if name in ours}
    trained: dict[str, Any] = {"document_mask": False, "dtype": _dtype(fields)}
    trained |= {name: ours[name] for name in _TRAINED if name in ours}
    theta, scaling = read_rope(stored, family.rope)
    return ModelConfig(
        **values,
        **trained,
        gated_width=gated_width,
        ffn_width=None if by_rule else width,
        activation=activation,
        activation_options=options,
        moe=MoEConfig(**moe),
        qk_norm=family.qk_norm,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def _completed(stored: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The fields with what absent ones mean."""
    fields = {**family.defaults, **stored}
    if family.moe and "num_local_experts" in stored:  # OLMoE's other name for it
        experts = stored["num_local_experts"]
        fields["num_experts"] = stored.get("num_experts", experts)
        require(
            fields["num_experts"] == experts,
            f"config.json: num_experts={fields['num_experts']} and num_local_experts={experts}"
            " contradict each other; remove the wrong one.",
        )
    wanted = [*_FIELDS, "intermediate_size", *(_MOE_FIELDS if family.moe else ())]
    missing = [name for name in wanted if name not in fields]
    require(not missing, f"config.json lacks {', '.join(missing)}.")
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    require(
        width % heads == 0,
        f"config.json: hidden_size={width} must be a multiple of num_attention_heads={heads}.",
    )
    pad, size = fields.get("pad_token_id"), fields["vocab_size"]
    require(
        pad is None or -size <= pad < size,
        f"config.json: pad_token_id={pad} is no id of vocab_size={size}.",
    )
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = heads
    if fields["head_dim"] is None:
        # transformers' OLMoE and Apertus have no such field, but multiply by it where there is one.
        require(
            family.head_dim or "head_dim" not in stored,
            f"config.json: head_dim=None; leave it out, or write {width // heads}.",
        )
        fields["head_dim"] = width // heads
    return fields


def _check_section(ours: Mapping[str, Any], family: Family) -> None:
    """Raises `InputError` for a note of ours that is unknown, or missing where PyTorch reads it."""
    read: set[str] = set()
    if family.file is not None:
        read = {"activation", *_ACTIVATION, *(("coefficients",) if family.moe else ())}
    known = {*_TRAINED, *(_TRAINED_MOE if family.moe else ()), *read}
    for name in ours:
        if name not in known:
            raise unknown(f"field of {SECTION} in config.json", name, known)
    missing = sorted(read - ours.keys())
    require(not missing, f"config.json: {SECTION} lacks {', '.join(missing)}.")


def _activation(
    fields: Mapping[str, Any], ours: Mapping[str, Any], family: Family
) -> tuple[str, ActivationOptions]:
    if family.file is None:
        act = fields["hidden_act"]
        if act not in family.activations:
            raise unknown("hidden_act in config.json", act, family.activations)
        return family.activations[act], ActivationOptions()
    name = ours["activation"]
    if not isinstance(name, str) or name not in IN_TORCH:
        raise unknown(f"{SECTION}.activation in config.json", name, IN_TORCH)
    return name, ActivationOptions(**{option: ours[option] for option in _ACTIVATION})


def _dtype(fields: Mapping[str, Any]) -> str:
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "float32")
    return "bfloat16" if name == "bfloat16" else "float32"


def family_of(cfg: ModelConfig) -> str:
    """The `model_type` that `cfg` is written as.

    Raises:
        InputError: there is none; the field at fault is named.
    """
    kind = _kind(cfg)
    family = FAMILIES[kind]
    wanted, what = family.qk_norm, family.name
    require(
        cfg.qk_norm == wanted,
        f"qk_norm={cfg.qk_norm!r}: {what} in transformers has {wanted!r}; there is no other family"
        " to write this model as.",
    )
    require(
        cfg.logit_softcap is None,
        f"logit_softcap={cfg.logit_softcap}: {what} in transformers has no such field; there is no"
        " other family to write this model as.",
    )
    window = cfg.attention_window
    require(
        window is None or window >= cfg.context_length,
        f"attention_window={window} with context_length={cfg.context_length}: {what} in"
        " transformers attends to all earlier tokens; there is no other family to write this model"
        " as.",
    )
    # transformers refuses a Llama whose width is no multiple, and others have no field for it.
    fits = cfg.embed_dim % cfg.num_heads == 0
    fits = fits and (family.head_dim or cfg.head_dim * cfg.num_heads == cfg.embed_dim)
    require(
        fits,
        f"head_dim={cfg.head_dim} with embed_dim={cfg.embed_dim} and num_heads={cfg.num_heads}:"
        f" {what} in transformers needs embed_dim to be a multiple of num_heads"
        f"{'' if family.head_dim else ', and head_dim to be embed_dim / num_heads'}.",
    )
    return kind


def _kind(cfg: ModelConfig) -> str:
    """The `model_type` that has the activation, and the norm of queries and keys if there is one.

    Raises:
        InputError: none has the activation.
    """
    base = "olmoe" if cfg.is_moe else "llama"
    if cfg.activation in GATES.values():
        return base
    plain = () if cfg.is_moe else tuple(PLAIN.values())
    ours = cfg.activation in IN_TORCH
    if cfg.activation in plain and (cfg.qk_norm == "head" or not ours):
        return "apertus"
    if not ours:
        known = {*IN_TORCH, *GATES.values(), *plain}
        raise unknown("activation in PyTorch", cfg.activation_name, known)
    return f"polycom_{base}"


def to_json(cfg: ModelConfig, *, dtype: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of `cfg`, with weights kept in `dtype` and these ids of special tokens.

    Both schemas of RoPE and both names of the dtype stand in it, for transformers 4 and 5.

    Raises:
        InputError: see `family_of`.
    """
    model_type = family_of(cfg)
    family = FAMILIES[model_type]
    stored: dict[str, Any] = {"model_type": model_type, "architectures": [family.architecture]}
    if family.file is not None:
        config = family.architecture.replace("ForCausalLM", "Config")
        stored["auto_map"] = {
            "AutoConfig": f"{family.file}.{config}",
            "AutoModelForCausalLM": f"{family.file}.{family.architecture}",
        }
    stored |= {theirs: getattr(cfg, mine) for theirs, mine in _FIELDS.items()}
    stored["rms_norm_eps"] = float(cfg.norm_eps)  # transformers takes no whole number
    stored["intermediate_size"] = cfg.hidden_width
    if cfg.is_moe:
        stored |= {theirs: getattr(cfg.moe, mine) for theirs, mine in _MOE_FIELDS.items()}
        stored["router_aux_loss_coef"] = float(cfg.moe.load_balance_weight)
    theirs = {ours: act for act, ours in family.activations.items()}
    stored |= {
        "hidden_act": theirs.get(cfg.activation_name, "silu"),  # of our own classes, read by none
        "attention_bias": False,
        "mlp_bias": False,
        **{name: values[0] for name, (values, _) in NOTES.get(model_type, {}).items()},
        **rope_to_json(cfg.rope_theta, cfg.rope_scaling, spelled_out=family.rope is not None),
        **ids,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    section = {name: getattr(cfg, name) for name in _TRAINED}
    if cfg.is_moe:
        section |= {name: getattr(cfg.moe, name) for name in _TRAINED_MOE}
    if family.file is not None:
        section["activation"] = cfg.activation_name
        section |= {name: getattr(cfg.activation_options, name) for name in _ACTIVATION}
    return stored | {SECTION: section}
