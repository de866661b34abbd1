"""The data of a run: what is asked for when it begins, and when it goes on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.run import corpus
from experiments.run.config import default_config
from polycom_jax import InputError
from polycom_jax.data.tokenizers import EOT, ByteTokenizer, FileTokenizer


@pytest.mark.parametrize("resuming", [False, True])
def test_what_is_refused_of_new_texts_is_told_of_those_of_a_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, resuming: bool
):
    told: list[str] = []

    def prepare(data: Any, *, warn: Any, **more: Any) -> None:
        if warn is None:
            raise InterruptedError("refused")
        warn("shared")
        raise InterruptedError("told")

    monkeypatch.setattr(corpus, "prepare_mixture", prepare)
    display: Any = SimpleNamespace(doing=str, busy=str, note=told.append)
    workdir: Any = SimpleNamespace(record=dict, check_data_there=str)
    config = default_config("tiny")
    with pytest.raises(InterruptedError, match="told" if resuming else "refused"):
        corpus.load_corpus(config, frozenset(), workdir, display, resuming=resuming)
    assert told == ["shared"] * resuming


@pytest.mark.parametrize(("now", "beside"), [("a", {}), ("b", {corpus.KNOWN_AS: "b"})])
def test_a_run_s_data_are_known_by_what_it_began_with(now: str, beside: dict[str, str]):
    began = {"data_fingerprint": "a", "data": {"files": {"old": "1"}}}
    found = {"data_fingerprint": now, "data": {"files": {"new": "1"}}}
    assert corpus.known_as(began, found) == found | {"data_fingerprint": "a"} | beside


def test_a_prompt_that_the_tokenizer_has_no_ids_for_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tokenizers

    model = tokenizers.models.WordLevel(
        {sign: i for i, sign in enumerate(["A", "C", "G", EOT])}, "?"
    )
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    bases = FileTokenizer(tmp_path / "tokenizer.json")
    found = SimpleNamespace(tokenizer=bases, fingerprint="a", corpora=())
    monkeypatch.setattr(corpus, "prepare_mixture", lambda *args, **how: found)
    display: Any = SimpleNamespace(doing=str, busy=str, note=str)
    config = default_config("tiny")
    with pytest.raises(InputError, match=r"run.sample_prompt='def '.*--run.sample-prompt"):
        corpus.load_corpus(config, frozenset(), SimpleNamespace(), display, resuming=False)  # pyright: ignore[reportArgumentType]
    for prompt in ("", "A"):
        corpus.check_prompt(replace(config, run=replace(config.run, sample_prompt=prompt)), bases)
    corpus.check_prompt(config, ByteTokenizer())
