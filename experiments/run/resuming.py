"""Which settings may change when a run is resumed, and why: what does not change the result may.

Of the settings that name the data, their fingerprints decide, not the paths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.run.config import PretrainConfig
from experiments.terminal import flags
from polycom_jax import storage
from polycom_jax.data.sources import names_files
from polycom_jax.data.weights import Part, parts
from polycom_jax.reference import Reference, is_reference

Source = str | tuple[str, ...] | None


def _by_field(fields: Mapping[str, str]) -> Mapping[str, str]:
    """Field -> why, from a table of why -> fields."""
    return {name: why for why, names in fields.items() for name in names.split()}


_FUNCTION = "another function of the parameters"

STAYS = _by_field(
    {
        "shape of parameters": """
            model.vocab_size model.num_layers model.embed_dim model.num_heads
            model.num_kv_heads model.head_dim model.gated_width model.ffn_width
            model.tie_embeddings model.qk_norm model.moe.num_experts
            model.moe.coefficients model.activation_options.order
        """,
        _FUNCTION: """
            model.activation model.activation_options.eps
            model.activation_options.sigmoid model.activation_options.bound
            model.activation_options.output_scale model.rope_theta model.norm_eps
            model.logit_softcap model.document_mask model.attention_window model.moe.top_k
            model.moe.normalize_top_k model.rope_scaling.factor
            model.rope_scaling.low_freq_factor model.rope_scaling.high_freq_factor
            model.rope_scaling.original_context_length
        """,
        "another gradient of the same function": "model.activation_options.bits",
        "what the parameters began from": """
            model.activation_options.initial model.init run.init_from
        """,
        "what the state holds besides": "optim.ema_decay",
        "another precision, not another rounding of the same one": "model.dtype",
        "which tokens are dropped": "model.moe.capacity_factor",
        "another loss": "model.moe.load_balance_weight model.moe.router_z_weight optim.z_loss",
        "which tokens stand in a batch": "model.context_length data.batch_size",
        "which text is read": "data.text_field data.train_split data.undecodable data.damaged",
        "where documents begin, and which are held out": "data.document_bytes",
        "which token parts documents": "data.end_of_text",
        "what a BPE is trained on": "data.bpe_train_bytes",
        "which held-out text the best checkpoint is chosen by": "run.eval_tokens",
        "order of the data, and what the parameters began from": "run.seed",
        "what the parameters began from, and another update": """
            model.parametrization model.mup_base_width
        """,
        "another update": """
            optim.optimizer optim.peak_learning_rate optim.schedule
            optim.final_learning_rate_fraction
            optim.warmup_steps optim.decay_steps optim.decay_fraction optim.b1
            optim.b2 optim.eps optim.weight_decay optim.decay_roles optim.clip_norm
            optim.coefficient_multiplier optim.loss_scaling optim.multipliers.matrix
            optim.multipliers.embedding optim.multipliers.norm
            optim.multipliers.coefficient optim.multipliers.router
        """,
    }
)
"""Another value would make another run of it: refused."""

BY_FINGERPRINT = _by_field(
    {
        "the same bytes may lie elsewhere": "data.source data.heldout data.tokenizer",
    }
)
"""Refused where the prepared data differ."""

ROUNDING = _by_field(
    {
        "the result does not depend on the mesh": "mesh.data mesh.fsdp mesh.tensor mesh.expert",
        "the same sums in another order": """
            model.attention model.activation_options.implementation model.loss_chunk
        """,
        "what is kept, and what is computed twice": "model.remat",
        "how the layers' loop is compiled": "model.unroll",
        "the same sums in another order; not those of a mixture's routers": """
            optim.accumulation_steps
        """,
        "which of a GPU's programs are taken": "run.deterministic",
        "how a program is compiled": "run.compiler_options",
    }
)
"""May change; numbers are equal from there on up to rounding."""

FREE = _by_field(
    {
        "length": "run.steps",
        "what is reported and when": """
            run.log_every run.eval_every run.profile_steps run.trackers
        """,
        "what is kept and when": "run.checkpoint_every run.keep_last",
        "what the finished model writes": "run.sample_prompt run.sample_tokens",
        "when a run that is lost ends": "run.give_up_after",
        "how a run is asked to end": "run.grace_s",
        "where programs are kept": "run.compile_cache run.compile_cache_dir",
        "the machine": "run.hardware hosts.coordinator hosts.count hosts.index",
        "nothing is run": "run.dry_run",
        "where prepared data are kept": "data.cache_dir",
        "how long it waits": "data.lock_timeout_s hosts.start_timeout_s hosts.lost_after_s",
        "a folder may be moved": "workdir",
        "where the other values came from": "preset",
    }
)
"""May change, and change no number of a step."""

UNTIL_EVALUATED = frozenset({"run.eval_tokens"})
"""Of `STAYS`, what may change while the only checkpoint is of weights that were brought in."""

MAY_CHANGE = frozenset({*BY_FINGERPRINT, *ROUNDING, *FREE})

GIVEN = frozenset({"workdir", "preset", *(name for name in FREE if name.startswith("hosts."))})
"""Changes that go without saying: the command has just named them."""

_WORDS = ("stdlib", "bytes", "bpe", None)
"""Values of `BY_FINGERPRINT` that name no place."""


def goes_on(given: frozenset[str]) -> bool:
    """Whether a command that sets these fields leaves a run the one that it is."""
    return "preset" not in given and given <= MAY_CHANGE


def fixed(config: PretrainConfig) -> dict[str, Any]:
    """Field -> value, for all that must not change when a run is resumed."""
    # Its value has gone into multipliers.coefficient; checkpoints of 0.1.0 hold what was given.
    free = MAY_CHANGE | {"optim.coefficient_multiplier"}
    if config.model.is_moe:
        free -= {"optim.accumulation_steps"}  # routers balance the load of each part by itself
    if config.model.moe.capacity_factor is not None:
        free -= {name for name in ROUNDING if name.startswith("mesh.")}  # a device drops its own
    return {
        name: wherever(name, value)
        for name, value in flags.flatten(config).items()
        if name not in free
    }


def function_of(config: PretrainConfig) -> dict[str, Any]:
    """Field -> value, for all that says which function of its parameters a model is."""
    scales = {"model.parametrization", "model.mup_base_width"}  # muP's, of the logits for one
    return {
        name: value
        for name, value in fixed(config).items()
        if STAYS.get(name) == _FUNCTION or name in scales
    }


def wherever(name: str, value: Any) -> Any:
    """What a setting says, but not where a file lies that it names by its hash."""
    of_file = name == "model.activation" and is_reference(value)
    return Reference.parse(value).identity if of_file else value


def same_activation(one: object, other: object) -> bool:
    """Whether two names are of one activation: of files, their contents tell."""
    return wherever("model.activation", one) == wherever("model.activation", other)


def differences(
    config: PretrainConfig, stored: PretrainConfig, *, begun: bool = True
) -> dict[str, tuple[Any, Any]]:
    """Field -> (stored, now), where what must not change when a run is resumed has changed.

    Data in another place are compared by their fingerprint, once they are prepared. What is no
    place on this machine, such as a name of TFDS, is compared by name. A run that has not `begun`
    stands before its first step.
    """
    kept = fixed(stored).keys() - (frozenset() if begun else UNTIL_EVALUATED)
    other = _changes(config, stored)
    return {
        name: (old, new)
        for name, (old, new) in other.items()
        if name in kept or (name in BY_FINGERPRINT and not _moved(old, new))
    }


def allowed(config: PretrainConfig, stored: PretrainConfig, *, begun: bool = True) -> str:
    """What has changed and may, as one line; "" where nothing has."""
    refused = differences(config, stored, begun=begun)
    parts = []
    for names, note in (
        (FREE, ""),
        (UNTIL_EVALUATED, " (nothing is evaluated yet)"),
        (BY_FINGERPRINT, " (if the bytes are the same)"),
        (ROUNDING, " (equal from here on up to rounding)"),
    ):
        reported = [
            f"{name} {old!r} -> {new!r}"
            for name, (old, new) in _changes(config, stored).items()
            if name in names and name not in GIVEN and name not in refused
        ]
        parts += [", ".join(reported) + note] if reported else []
    return "; ".join(parts)


def _changes(config: PretrainConfig, stored: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    before, now = flags.flatten(stored), flags.flatten(config)
    return {
        name: (before[name], now[name])
        for name in sorted(now)
        if wherever(name, before[name]) != wherever(name, now[name])
    }


def _moved(old: Source, new: Source) -> bool:
    """Whether both may name the same bytes in two places, the new one on this machine.

    Of several texts, each with the weight that it had.
    """
    if isinstance(old, tuple) or isinstance(new, tuple):
        return _all_moved(parts(old or ""), parts(new or ""))
    if old in _WORDS or new in _WORDS:
        return False
    place = storage.named(str(new))
    return names_files(str(new)) or storage.is_file(place) or storage.is_folder(place)


def _all_moved(old: Sequence[Part], new: Sequence[Part]) -> bool:
    if [part.weight for part in old] != [part.weight for part in new]:
        return False
    pairs = [(a.source, b.source) for a, b in zip(old, new, strict=True)]
    return all(a == b or _moved(a, b) for a, b in pairs)
