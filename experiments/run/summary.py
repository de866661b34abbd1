"""What a run says before it begins: its size in a line, and what is odd about its text."""

import math
from dataclasses import replace

import jax

from experiments.run.config import PretrainConfig
from polycom_jax import models
from polycom_jax.data import Corpus, Mixture
from polycom_jax.data.local import heldout_files
from polycom_jax.data.sources import names_files
from polycom_jax.data.weights import parts
from polycom_jax.data.windows import count_windows
from polycom_jax.models import ModelConfig
from polycom_jax.reference import SHOWN, Reference, is_reference

MOST_HELD_OUT = 0.15
"""Share of the text above which what is held out by chance is missed in training."""


def treatment(config: PretrainConfig, data: Mixture) -> str:
    """One line on documents that were not simply taken as they are."""
    found = [_treatment(config, corpus) for corpus in data.corpora]
    if data.is_single:
        return found[0]
    return "; ".join(
        f"{name}: {line}" for name, line in zip(data.names, found, strict=True) if line
    )


def _treatment(config: PretrainConfig, corpus: Corpus) -> str:
    long = corpus.train.documents_longer_than(config.model.context_length)
    split = (
        f"{long:,} of {corpus.train.num_documents:,} training documents are longer than the context"
        f" of {config.model.context_length} and run over several windows"
    )
    return "; ".join(filter(None, [split if long else "", corpus.treated]))


def own_activation(model: ModelConfig) -> str:
    """One line on an activation that is from a file of the user's, which is imported; or ""."""
    if not is_reference(model.activation):
        return ""
    of = Reference.parse(str(model.activation))
    return (
        f"{model.activation_name} is imported from {of.file()}, SHA-256"
        f" {(of.sha256 or '')[:SHOWN]}..."
    )


def describe(config: PretrainConfig, data: Mixture) -> str:
    """One line on model, data, length and devices; of several corpora each has its own epochs."""
    model, run = config.model, config.run
    active = f" ({models.count_active_params(model):,} active)" if model.is_moe else ""
    texts = [_sizes(config, corpus) for corpus in data.corpora]
    epochs = [
        f"{run.steps * config.data.batch_size * weight / windows(config, corpus):.3g} epochs"
        for corpus, weight in zip(data.corpora, data.weights, strict=True)
    ]
    shares = [
        f"{name} {weight:.4g} of the windows, {epoch}, {text}"
        for name, weight, epoch, text in zip(data.names, data.weights, epochs, texts, strict=True)
    ]
    steps = f"{run.steps:,} steps of {config.data.batch_size} x {model.context_length} tokens"
    return (
        f"{config.preset} with {model.activation_name}, {models.count_params(model):,} parameters"
        f"{active},"
        f" vocabulary {model.vocab_size:,}; "
        + (
            f"{texts[0]}; {steps}, {epochs[0]},"
            if data.is_single
            else f"{'; '.join(shares)}; {steps},"
        )
        + f" learning rate {_schedule(config)};"
        f" {jax.device_count()} x {jax.devices()[0].device_kind}"
    )


def windows(config: PretrainConfig, corpus: Corpus) -> int:
    """How many a corpus has in an epoch."""
    return count_windows(corpus.train, config.model.context_length)


def _sizes(config: PretrainConfig, corpus: Corpus) -> str:
    read = min(config.run.eval_tokens or math.inf, corpus.heldout.num_targets)
    part = f", {read:,} of them read at a time" if read < corpus.heldout.num_targets else ""
    return (
        f"{corpus.train.num_tokens:,} training tokens ({_bytes(corpus, 'train')}),"
        f" {corpus.heldout.num_tokens:,} held out ({_bytes(corpus, 'heldout')}){part}"
    )


def _schedule(config: PretrainConfig) -> str:
    optim = config.optim
    if optim.schedule == "constant":
        return "constant after the warm-up"
    shape = "" if optim.schedule == "cosine" else f" ({optim.schedule})"
    return f"falling until step {optim.decay_steps:,}{shape}"


def _bytes(corpus: Corpus, split: str) -> str:
    return f"{corpus.summary[split]['bytes']:,} bytes"


def held_out_too_much(config: PretrainConfig, data: Mixture) -> str:
    """A warning where much of a text of few documents has come to be held out; or ""."""
    each = zip(parts(config.data.source), data.corpora, strict=True)
    by_hash = [
        (part.source, corpus)
        for part, corpus in each
        if config.data.heldout is None and names_files(part.source)
    ]
    found = [
        _held_out_too_much(source, corpus, data.is_single)
        for source, corpus in by_hash
        if not heldout_files(replace(config.data, source=source))
    ]
    return "; ".join(filter(None, found))


def _held_out_too_much(source: str, corpus: Corpus, alone: bool) -> str:
    kept, held_out = (corpus.summary[split]["bytes"] for split in ("train", "heldout"))
    share = held_out / (kept + held_out)
    if share <= MOST_HELD_OUT:
        return ""
    advice = ", or other files to evaluate on by data.heldout" if alone else ""
    return (
        f"warning: {share:.0%} of the text{'' if alone else f' {source}'} is held out"
        f" ({held_out:,} bytes in {corpus.heldout.num_documents:,} of"
        f" {corpus.train.num_documents + corpus.heldout.num_documents:,} documents) and not trained"
        f" on; give more text{advice}"
    )


def schedule_warnings(config: PretrainConfig, *, resuming: bool) -> list[str]:
    """Where the learning rate does not do what a run of this length is thought to want."""
    optim, steps, found = config.optim, config.run.steps, []
    if optim.warmup_steps >= steps:
        found.append(
            f"warning: optim.warmup_steps={optim.warmup_steps} is not shorter than the run's"
            f" {steps} steps: the learning rate never gets to its peak"
        )
    horizon = optim.decay_steps or steps
    if resuming and horizon < steps and optim.schedule != "constant":
        last = optim.peak_learning_rate * optim.final_learning_rate_fraction
        found.append(
            f"warning: the schedule that this run began with ends at step {horizon}: from there to"
            f" step {steps} the learning rate stays at {last:g}. A run with a schedule of {steps}"
            " steps begins in another --workdir"
        )
    return found
