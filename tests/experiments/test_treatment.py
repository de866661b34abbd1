"""What a run says of its text before it begins."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.run.config import PretrainConfig, default_config
from experiments.run.summary import describe, held_out_too_much, treatment
from polycom_jax.data import ByteTokenizer, Corpus, Mixture


def alone(corpus: Any) -> Mixture:
    """The data of a run on one corpus."""
    return Mixture(("text",), (corpus,), (1.0,))


class Store:
    """A store of three documents, `long` of which are longer than any context."""

    num_documents = 3

    def __init__(self, long: int) -> None:
        self.long = long

    def documents_longer_than(self, tokens: int) -> int:
        assert tokens == 256
        return self.long


def told(long: int, undecodable: int) -> str:
    none = {"undecodable": 0, "empty": 0, "damaged": 0}
    counts = none | {"undecodable": undecodable}
    summary = {"undecodable": "replace", "damaged": "error", "train": counts, "heldout": none}
    store: Any = Store(long)
    corpus = Corpus(store, store, ByteTokenizer(), fingerprint="", summary=summary)
    return treatment(default_config("tiny"), alone(corpus))


def test_documents_that_were_not_taken_as_they_are_are_told_of():
    assert told(0, 0) == ""
    assert told(2, 0) == (
        "2 of 3 training documents are longer than the context of 256 and run over several windows"
    )
    assert "1 document with undecodable bytes replaced" in told(2, 1)


def corpus(train: int, heldout: int) -> Any:
    """Of two splits of so many bytes, a token each."""

    def split(size: int) -> Any:
        return SimpleNamespace(num_tokens=size + 1, num_targets=size, num_documents=3)

    counts = {"train": {"bytes": train}, "heldout": {"bytes": heldout}}
    return SimpleNamespace(train=split(train), heldout=split(heldout), summary=counts)


def config(**changes: Any) -> PretrainConfig:
    usual = default_config("tiny")
    data = replace(usual.data, source="a.txt", batch_size=4, **changes)
    run = replace(usual.run, steps=100)
    return replace(usual, data=data, run=run, optim=replace(usual.optim, decay_steps=100))


def test_the_first_line_has_the_sizes_of_both_splits_and_the_epochs():
    line = describe(config(), alone(corpus(256 * 80, 256 * 20)))
    assert "20,481 training tokens (20,480 bytes), 5,121 held out (5,120 bytes);" in line
    assert "100 steps of 4 x 256 tokens, 5 epochs," in line
    some = replace(config(), run=replace(config().run, eval_tokens=1_000))
    assert "held out (5,120 bytes), 1,000 of them read at a time;" in describe(
        some, alone(corpus(256 * 80, 256 * 20))
    )


@pytest.mark.parametrize(
    ("heldout", "source", "share", "warns"),
    [
        (None, "a.txt", 0.94, True),
        (None, "a.txt", 0.16, True),
        (None, "a.txt", 0.14, False),
        ("b.txt", "a.txt", 0.94, False),
        (None, "c4/en", 0.94, False),
    ],
)
def test_text_that_is_mostly_held_out_is_warned_of(
    heldout: str | None, source: str, share: float, warns: bool
):
    apart = round(70_000 * share)
    changed = config(heldout=heldout)
    changed = replace(changed, data=replace(changed.data, source=source))
    said = held_out_too_much(changed, alone(corpus(70_000 - apart, apart)))
    assert said.startswith(f"warning: {share:.0%} of the text is held out") == warns
    assert bool(said) == warns


def test_a_split_that_is_held_out_whole_is_no_text_to_miss(tmp_path: Path):
    for name in ("train-0.parquet", "validation-0.parquet"):
        (tmp_path / name).touch()
    data = replace(config().data, source=str(tmp_path))
    changed, held_out = replace(config(), data=data), alone(corpus(50_000, 20_000))
    assert held_out_too_much(changed, held_out) == ""
    (tmp_path / "validation-0.parquet").unlink()
    assert held_out_too_much(changed, held_out).startswith("warning: 29% of the text")


def test_of_several_texts_each_is_told_of():
    several = config()
    several = replace(several, data=replace(several.data, source=("a.txt=3", "b.txt=1")))
    data = Mixture(("a", "b"), (corpus(256 * 80, 9), corpus(256 * 20, 256 * 8)), (0.75, 0.25))
    line = describe(several, data)
    assert "a 0.75 of the windows, 3.75 epochs, 20,481 training tokens" in line
    assert "b 0.25 of the windows, 5 epochs, 5,121 training tokens" in line
    said = held_out_too_much(several, data)
    assert said.startswith("warning: 29% of the text b.txt is held out")
    assert said.count("warning") == 1
