"""What a `config.json` may hold: the kind of each field, and which change what a model computes.

Kinds are those that the configuration classes of `transformers` 5 check, so that what it calls
broken is broken here, too.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from polycom_jax._errors import InputWarning, require


@dataclass(frozen=True)
class Kind:
    """What a JSON value must be.

    Attributes:
        words: that, for a message.
        fits: is a value of this kind.
    """

    words: str
    fits: Callable[[Any], bool]

    @property
    def optional(self) -> "Kind":
        """The same, or null."""
        return Kind(f"{self.words}, or null", lambda value: value is None or self.fits(value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A JSON number; true and false are none."""
    return isinstance(value, float) or _is_int(value)


def _is_numbered(value: Any) -> bool:
    return isinstance(value, dict) and all(name.strip("-").isdecimal() for name in value)


COUNT = Kind("a whole number from 1 to 2147483647", lambda v: _is_int(v) and 1 <= v < 2**31)
TOKEN = Kind("a token's id", lambda v: _is_int(v) and abs(v) < 2**31)
TOKENS = Kind(
    "a token's id or a list of some",
    lambda v: TOKEN.fits(v) or (isinstance(v, list) and all(map(TOKEN.fits, v))),
)
FLOAT = Kind(
    "a finite number with a decimal point or an exponent (transformers takes no whole one)",
    lambda v: isinstance(v, float) and math.isfinite(v),
)
NUMBER = Kind("a number", is_number)
POSITIVE = Kind("a positive, finite number", lambda v: is_number(v) and 0 < v <= 3e38)
BOOL = Kind("true or false", lambda v: isinstance(v, bool))
TEXT = Kind("text", lambda v: isinstance(v, str))
OBJECT = Kind("an object", lambda v: isinstance(v, dict))


def one_of(*values: str) -> Kind:
    """One of a few words."""
    return Kind(f"one of {', '.join(values)}", lambda v: isinstance(v, str) and v in values)


DTYPE = one_of("float32", "bfloat16", "float16", "float64")

# Used here, or without effect on what a model computes: of the latter transformers checks the kind.
KINDS: Mapping[str, Kind] = {
    "model_type": TEXT,
    "vocab_size": COUNT,
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_key_value_heads": COUNT.optional,
    "head_dim": COUNT.optional,
    "max_position_embeddings": COUNT,
    "rms_norm_eps": FLOAT,
    "hidden_act": TEXT,
    "tie_word_embeddings": BOOL,
    "num_experts": COUNT,
    "num_local_experts": COUNT,
    "num_experts_per_tok": COUNT,
    "norm_topk_prob": BOOL,
    "router_aux_loss_coef": FLOAT,
    "rope_theta": POSITIVE,
    "rope_parameters": OBJECT.optional,
    "rope_scaling": OBJECT.optional,
    "dtype": DTYPE.optional,
    "torch_dtype": DTYPE.optional,
    "polycom": OBJECT,
    "bos_token_id": TOKEN.optional,
    "eos_token_id": TOKENS.optional,
    "pad_token_id": TOKEN.optional,
    "attention_dropout": NUMBER,
    "initializer_range": Kind("from 0.0 to 1.0", lambda v: isinstance(v, float) and 0 <= v <= 1),
    "output_router_logits": BOOL,
    "use_cache": BOOL,
    "return_dict": Kind("true (transformers' own models need it)", lambda v: v is True),
    "pretraining_tp": TOKEN.optional,
    "auto_map": OBJECT,
    "id2label": Kind("an object with whole numbers as names", _is_numbered).optional,
    "num_labels": TOKEN,
    "attn_implementation": one_of(
        "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
    ).optional,
}

# Nothing in transformers' Llama, OLMoE and Apertus reads these, or only to write text; Llama 3's
# scaling of rotary frequencies alone asks for the original length.
_UNREAD = """
    architectures transformers_version name_or_path _name_or_path _commit_hash
    _attn_implementation _attn_implementation_autoset experts_implementation
    output_hidden_states output_attentions chunk_size_feed_forward is_decoder
    add_cross_attention cross_attention_hidden_size tie_encoder_decoder torchscript use_bfloat16
    problem_type label2id finetuning_task task_specific_params tokenizer_class prefix
    original_max_position_embeddings max_sequence_length gradient_checkpointing hidden_dropout
    sep_token_id unk_token_id mask_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id temperature top_k top_p typical_p do_sample max_length min_length
    num_beams num_beam_groups num_return_sequences early_stopping repetition_penalty
    length_penalty diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff bad_words_ids begin_suppress_tokens
    suppress_tokens exponential_decay_length_penalty output_scores return_dict_in_generate
    remove_invalid_values use_flash_attention_2 pretraining_dataset
"""
IGNORED = frozenset(_UNREAD.split())

# Fields that change what is computed, the values under which they do not, and how they change it.
NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "is_causal": ((True,), "attention that sees what follows"),
    "is_encoder_decoder": ((False,), "an encoder before the decoder"),
    "attention_bias": ((False,), "biases in attention's projections"),
    "mlp_bias": ((False,), "biases in the feed-forward blocks"),
    "clip_qkv": ((None,), "clipped queries, keys and values"),
    "sliding_window": ((None,), "attention to the last few tokens alone"),
    "attention_chunk_size": ((None,), "attention within a chunk alone"),
    "quantization_config": ((None,), "quantised weights"),
    "compression_config": ((None,), "compressed weights"),
    "per_layer_config": ((None, {}), "layers that differ"),
    "pruned_heads": ((None, {}), "heads that are left out"),
    "kv_sharing_modes": ((None,), "layers that share keys and values"),
    "partial_rotary_factor": ((None, 1.0), "heads that are turned in part"),
}

# Notes in published folders of one family, which transformers does not read.
NOTES: Mapping[str, Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "apertus": {
        "qk_norm": ((True,), "queries and keys without a norm, unlike transformers' Apertus"),
        "post_norm": ((False,), "norms behind the blocks"),
    },
}


def check_fields(stored: Mapping[str, Any]) -> None:
    """Raises `InputError` for a field of another kind, or one that our models do not compute.

    Unknown fields are named in one `InputWarning`: `transformers` does not read
    them either, but whoever wrote them may have meant another model.
    """
    neutral = {**NEUTRAL, **NOTES.get(stored["model_type"], {})}
    for name, value in stored.items():
        check_kind(f"config.json: {name}", value, KINDS.get(name))
        if name in neutral:
            values, words = neutral[name]
            require(
                any(_same(value, one) for one in values),
                f"config.json: {name}={short(value)} means {words}, which our models do not"
                f" compute; {name}={_json(values[0])} is needed.",
            )
    _check_layer_types(stored)
    new = [name for name in stored if name not in {*KINDS, *IGNORED, *neutral, "layer_types"}]
    if new:
        shown = ", ".join(f"{name}={str(stored[name])[:40]!r}" for name in new[:8])
        warnings.warn(
            f"config.json: {shown}{' ...' if len(new) > 8 else ''}: read neither here nor by"
            f" transformers' {stored.get('model_type')}; if the model was trained with code that"
            " does, this is another model.",
            InputWarning,
            stacklevel=5,
        )


def check_kind(name: str, value: Any, kind: Kind | None) -> None:
    """Raises `InputError` unless the value is of this kind (None: of any)."""
    if kind is not None:
        require(kind.fits(value), f"{name}={short(value)} must be {kind.words}.")


def _check_layer_types(stored: Mapping[str, Any]) -> None:
    kinds, layers = stored.get("layer_types"), stored.get("num_hidden_layers")
    require(
        kinds is None or (isinstance(kinds, list) and kinds == ["full_attention"] * len(kinds)),
        f"config.json: layer_types={short(kinds)}: our layers are all alike, with attention to all"
        " that came before; full_attention is needed in each.",
    )
    require(
        kinds is None or len(kinds) == layers,
        f"config.json: layer_types names {len(kinds or ())} layers, num_hidden_layers={layers}.",
    )


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, and 1 is 1.0."""
    truth = isinstance(value, bool) or isinstance(other, bool)
    return value is other if truth else value == other


def _json(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, repr(value))


def short(value: Any) -> str:
    """The value in ASCII, cut where it is long."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
