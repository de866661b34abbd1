"""The recipe that all arms of a study start from, and what a command changes in it.

`--recipe optim.optimizer=muon model.logit_softcap=30` takes the fields that `experiments.pretrain`
has, but for those that the study, or one of its arms, decides itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.compare.arms import Arm
from experiments.terminal import flags
from experiments.terminal.flags import CommandLine, Leaf
from polycom_jax._errors import InputError, require
from polycom_jax.models import ModelConfig
from polycom_jax.training import OptimConfig

EXAMPLE = "optim.optimizer=muon"

OWN: Mapping[str, str] = {
    "model.activation": "the arms of a study differ in it",
    "model.activation_options": "the arms of a study differ in it",
    "model.moe": "--model says it, and the study moe",
    "model.vocab_size": "the tokenizer says it",
    "model.context_length": "--seq-len says it",
    **dict.fromkeys(
        (f"model.{name}" for name in (
            "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "gated_width",
            "ffn_width",
        )),
        "--model says it",
    ),
    "optim.peak_learning_rate": "it is searched for each arm, from --learning-rates on",
    **dict.fromkeys(
        (f"optim.{name}" for name in (
            "schedule", "final_learning_rate_fraction", "warmup_steps", "decay_steps",
            "decay_fraction",
        )),
        "a study has its own schedule, from whose trunk shorter runs branch off",
    ),
    "optim.accumulation_steps": "a study takes its batch in one piece",
    "optim.loss_scaling": "a run of a study is over where an update is left out",
    "optim.coefficient_multiplier": "it is now optim.multipliers.coefficient",
}  # fmt: skip
"""Field, or section of fields -> why a study does not take it."""


@dataclass(frozen=True)
class Common:
    """What all arms have in common.

    Attributes:
        model: but for activation, and what else an arm changes.
        optim: likewise; its rate and schedule are not read.
    """

    model: ModelConfig
    optim: OptimConfig


def changed(start: Common, words: Sequence[str]) -> Common:
    """The recipe with fields set by words FIELD=VALUE; several values of one have commas between.

    Raises:
        InputError: a word of another form, a field that there is not, one that the study decides
            itself, or a value that is refused.
    """
    if not words:
        return start
    base = flags.leaves(start)
    settings = [_setting(word, base) for word in words]
    found = CommandLine("compare").parse(start, settings)
    require(
        found.model.dtype != "float16",
        "--recipe model.dtype=float16: a study takes float32 or bfloat16; float16 leaves updates"
        " out, and a run of a study is over where one is.",
    )
    return found


def _setting(word: str, base: Mapping[str, Leaf]) -> flags.Setting:
    name, equals, value = word.partition("=")
    name = name.replace("-", "_")
    require(bool(equals), f"--recipe {word}: expected FIELD=VALUE, as {EXAMPLE}.")
    why = next((why for own, why in OWN.items() if f"{name}.".startswith(f"{own}.")), "")
    require(not why, f"--recipe {word}: {name} is not the recipe's; {why}.")
    if name not in base:
        raise flags.unknown_name("field of --recipe", name, base)
    many = name in flags.lists(base)
    return flags.Setting(name, tuple(filter(None, value.split(","))) if many else (value,))


def differing(start: Common, found: Common) -> dict[str, Any]:
    """Field -> value, of those that are not as they were."""
    before = flags.flatten(start)
    return {name: now for name, now in flags.flatten(found).items() if now != before[name]}


def worded(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The words that `changed` takes for these fields."""
    many = (list, tuple)
    return tuple(
        f"{name}={','.join(map(str, value)) if isinstance(value, many) else value}"
        for name, value in fields.items()
    )


def check_arms(common: Common, fields: Mapping[str, Any], arms: Sequence[Arm]) -> None:
    """Raises where an arm has another value of a field that the recipe sets for all.

    Raises:
        InputError: naming the arm, the field and both values.
    """
    for arm in arms:
        own = flags.flatten(Common(arm.model(common.model), arm.optimizer(common.optim)))
        for name, value in fields.items():
            if own[name] != value:
                raise InputError(
                    f"--recipe {worded({name: value})[0]}: arm {arm.name} has its own {name},"
                    f" {own[name]!r}; leave it out of --arms, or the field out of --recipe."
                )
