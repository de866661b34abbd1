"""The data of a run: prepared, compared between processes, and what they tell about its config."""

import secrets
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from experiments.run.config import PretrainConfig, filled, resolve
from experiments.run.folder import KNOWN_AS, Workdir, data_record
from experiments.run.provenance import versions
from experiments.run.yaml_file import FILLED_IN
from experiments.terminal.progress import Display
from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.data import DataConfig, Mixture, Team, Tokenizer, prepare_mixture
from polycom_jax.data.cache import cache_folder
from polycom_jax.data.windows import count_windows
from polycom_jax.hosts import gather, meet


def load_corpus(
    config: PretrainConfig,
    given: frozenset[str],
    workdir: Workdir,
    display: Display,
    *,
    resuming: bool,
) -> tuple[PretrainConfig, Mixture, dict[str, Any]]:
    """Prepares the data, and completes by what only they tell: the config, and its record."""
    clock = time.perf_counter()
    display.doing("prepare")
    # A BPE may come out smaller than asked for; asking for less would be another preparation.
    record = workdir.record() if resuming else {"vocab_size_asked": config.model.vocab_size}
    asked = record.get("vocab_size_asked", config.model.vocab_size)
    if resuming:
        workdir.check_data_there(config.data)
    team = data_team(config.data)
    tell: dict[str, Any] = {"progress": display.busy, "warn": display.note if resuming else None}
    data = prepare_mixture(config.data, vocab_size=asked, team=team, **tell)
    display.note(f"prepared data in {time.perf_counter() - clock:.1f} s")
    found = {"fingerprint": data.fingerprint, "tokenizer": data.tokenizer.fingerprint}
    meet("the data", found, timeout_s=config.data.lock_timeout_s)
    for corpus in data.corpora:
        count_windows(corpus.train, config.model.context_length)
    check_prompt(config, data.tokenizer)
    if resuming:
        workdir.check_data(data_record(data), data.earlier)
        return config, data, record | known_as(record, data_record(data))
    record |= {FILLED_IN: filled(config, given), **versions()}
    config = resolve(config, given, vocab_size=data.tokenizer.vocab_size)
    return config, data, record | data_record(data)


def check_prompt(config: PretrainConfig, tokenizer: Tokenizer) -> None:
    """Raises `InputError` unless the tokenizer has ids for the prompt that the run ends with."""
    prompt = config.run.sample_prompt
    try:
        tokenizer.encode(prompt)
    except InputError as error:
        raise InputError(
            f"run.sample_prompt={prompt!r}, which the finished model is to continue: {error} Give a"
            " --run.sample-prompt of characters that it has, or an empty one."
        ) from error


def known_as(began: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run's data as they are now, under the fingerprint that the run began with.

    Checkpoints are of a run by that one. Runs of earlier versions began with another one than the
    same data have now; it is noted beside.
    """
    first, now = began["data_fingerprint"], found["data_fingerprint"]
    return {**found, "data_fingerprint": first, **({KNOWN_AS: now} if now != first else {})}


def data_team(config: DataConfig) -> Team:
    """All processes of the run, where they have one cache folder; else each prepares by itself."""
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return Team()
    cache, mark = cache_folder(config.cache_dir), f".seen-{secrets.token_hex(8)}"
    if index == 0:
        storage.write(cache / mark, b"")
    mark = gather("the cache folder", mark)[0]
    seen = gather("what is in the cache folder", storage.is_file(cache / mark))
    if index == 0:
        storage.remove(cache / mark)
    if not all(seen.values()):
        return Team()
    return Team(index, count, partial(meet, timeout_s=config.lock_timeout_s))
