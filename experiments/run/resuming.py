"""Which settings may change when a run is resumed, and why: what does not change the result may.

Of the settings that name the data, their fingerprints decide, not the paths.
"""

from collections.abc import Mapping
from typing import Any

from experiments.run.config import PretrainConfig
from experiments.terminal import flags
from polycom_jax import storage
from polycom_jax.data.sources import names_files
from polycom_jax.reference import Reference, is_reference

STAYS: Mapping[str, str] = {
    "model.vocab_size": "shape of parameters",
    "model.num_layers": "shape of parameters",
    "model.embed_dim": "shape of parameters",
    "model.num_heads": "shape of parameters",
    "model.num_kv_heads": "shape of parameters",
    "model.head_dim": "shape of parameters",
    "model.gated_width": "shape of parameters",
    "model.ffn_width": "shape of parameters",
    "model.tie_embeddings": "shape of parameters",
    "model.qk_norm": "shape of parameters",
    "model.moe.num_experts": "shape of parameters",
    "model.moe.coefficients": "shape of parameters",
    "model.activation": "another function of the parameters",
    "model.activation_options.order": "shape of parameters",
    "model.activation_options.eps": "another function of the parameters",
    "model.activation_options.sigmoid": "another function of the parameters",
    "model.activation_options.bound": "another function of the parameters",
    "model.activation_options.output_scale": "another function of the parameters",
    "model.activation_options.initial": "what the parameters began from",
    "model.init": "what the parameters began from",
    "model.rope_theta": "another function of the parameters",
    "model.norm_eps": "another function of the parameters",
    "model.document_mask": "another function of the parameters",
    "model.dtype": "another precision, not another rounding of the same one",
    "model.moe.top_k": "another function of the parameters",
    "model.moe.normalize_top_k": "another function of the parameters",
    "model.moe.capacity_factor": "which tokens are dropped",
    "model.moe.load_balance_weight": "another loss",
    "model.moe.router_z_weight": "another loss",
    "model.context_length": "which tokens stand in a batch",
    "data.batch_size": "which tokens stand in a batch",
    "data.text_field": "which text is read",
    "data.train_split": "which text is read",
    "data.undecodable": "which text is read",
    "data.damaged": "which text is read",
    "data.document_bytes": "where documents begin, and which are held out",
    "data.end_of_text": "which token parts documents",
    "data.bpe_train_bytes": "what a BPE is trained on",
    "run.seed": "order of the data, and what the parameters began from",
    "run.init_from": "what the parameters began from",
    "optim.peak_learning_rate": "another update",
    "optim.schedule": "another update",
    "optim.final_learning_rate_fraction": "another update",
    "optim.warmup_steps": "another update",
    "optim.decay_steps": "another update",
    "optim.decay_fraction": "another update",
    "optim.b1": "another update",
    "optim.b2": "another update",
    "optim.eps": "another update",
    "optim.weight_decay": "another update",
    "optim.decay_roles": "another update",
    "optim.clip_norm": "another update",
    "optim.coefficient_multiplier": "another update",
    "optim.multipliers.matrix": "another update",
    "optim.multipliers.embedding": "another update",
    "optim.multipliers.norm": "another update",
    "optim.multipliers.coefficient": "another update",
    "optim.multipliers.router": "another update",
}
"""Another value would make another run of it: refused."""

BY_FINGERPRINT: Mapping[str, str] = {
    "data.source": "the same bytes may lie elsewhere",
    "data.heldout": "the same bytes may lie elsewhere",
    "data.tokenizer": "the same bytes may lie elsewhere",
}
"""Refused where the prepared data differ."""

ROUNDING: Mapping[str, str] = {
    "mesh.data": "the result does not depend on the mesh",
    "mesh.fsdp": "the result does not depend on the mesh",
    "mesh.tensor": "the result does not depend on the mesh",
    "mesh.expert": "the result does not depend on the mesh",
    "model.attention": "the same sums in another order",
    "model.activation_options.implementation": "the same sums in another order",
    "model.remat": "what is kept, and what is computed twice",
    "model.unroll": "how the layers' loop is compiled",
    "model.loss_chunk": "the same sums in another order",
    "optim.accumulation_steps": "the same sums in another order; not those of a mixture's routers",
    "run.deterministic": "which of a GPU's programs are taken",
}
"""May change; numbers are equal from there on up to rounding."""

FREE: Mapping[str, str] = {
    "run.steps": "length",
    "run.log_every": "what is told and when",
    "run.eval_every": "what is told and when",
    "run.eval_tokens": "what is told and when",
    "run.checkpoint_every": "what is kept and when",
    "run.keep_last": "what is kept and when",
    "run.sample_prompt": "what the finished model writes",
    "run.sample_tokens": "what the finished model writes",
    "run.give_up_after": "when a run that is lost ends",
    "run.grace_s": "how a run is asked to end",
    "run.compile_cache": "where programs are kept",
    "run.compile_cache_dir": "where programs are kept",
    "run.compiler_options": "how a program is compiled",
    "run.tpu_slice": "the machine",
    "run.profile_steps": "what is told and when",
    "run.trackers": "what is told and when",
    "run.dry_run": "nothing is run",
    "data.cache_dir": "where prepared data are kept",
    "data.lock_timeout_s": "how long it waits",
    "hosts.coordinator": "the machine",
    "hosts.count": "the machine",
    "hosts.index": "the machine",
    "hosts.start_timeout_s": "how long it waits",
    "hosts.lost_after_s": "how long it waits",
    "workdir": "a folder may be moved",
    "preset": "where the other values came from",
}
"""May change, and change no number of a step."""

MAY_CHANGE = frozenset({*BY_FINGERPRINT, *ROUNDING, *FREE})

UNTOLD = frozenset({"workdir", "preset", *(name for name in FREE if name.startswith("hosts."))})
"""What is no news: the command has just said it."""

_WORDS = ("stdlib", "bytes", "bpe", None)
"""Values of `BY_FINGERPRINT` that name no place."""


def goes_on(given: frozenset[str]) -> bool:
    """Whether a command that sets these fields leaves a run the one that it is."""
    return "preset" not in given and given <= MAY_CHANGE


def fixed(config: PretrainConfig) -> dict[str, Any]:
    """Field -> value, for all that must not change when a run is resumed."""
    free = MAY_CHANGE
    if config.model.is_moe:
        free -= {"optim.accumulation_steps"}  # routers balance the load of each part by itself
    return {
        name: wherever(name, value)
        for name, value in flags.flatten(config).items()
        if name not in free
    }


def wherever(name: str, value: Any) -> Any:
    """What a setting says, but not where a file lies that it names by its hash."""
    of_file = name == "model.activation" and is_reference(value)
    return Reference.parse(value).identity if of_file else value


def differences(config: PretrainConfig, stored: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """Field -> (stored, now), where what must not change when a run is resumed has changed.

    Of data in another place their fingerprint tells, once they are prepared; of what is no place on
    this machine, as a name of TFDS, the name does.
    """
    kept, other = fixed(stored), _changes(config, stored)
    return {
        name: (old, new)
        for name, (old, new) in other.items()
        if name in kept or (name in BY_FINGERPRINT and not _moved(old, new))
    }


def allowed(config: PretrainConfig, stored: PretrainConfig) -> str:
    """What has changed and may, as one line; "" where nothing has."""
    refused = differences(config, stored)
    parts = []
    for names, note in (
        (FREE, ""),
        (BY_FINGERPRINT, " (if the bytes are the same)"),
        (ROUNDING, " (equal from here on up to rounding)"),
    ):
        told = [
            f"{name} {old!r} -> {new!r}"
            for name, (old, new) in _changes(config, stored).items()
            if name in names and name not in UNTOLD and name not in refused
        ]
        parts += [", ".join(told) + note] if told else []
    return "; ".join(parts)


def _changes(config: PretrainConfig, stored: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    before, now = flags.flatten(stored), flags.flatten(config)
    return {
        name: (before[name], now[name])
        for name in sorted(now)
        if wherever(name, before[name]) != wherever(name, now[name])
    }


def _moved(old: str | None, new: str | None) -> bool:
    """Whether both may name the same bytes in two places, the new one on this machine."""
    if old in _WORDS or new in _WORDS:
        return False
    place = storage.named(str(new))
    return names_files(str(new)) or storage.is_file(place) or storage.is_folder(place)
