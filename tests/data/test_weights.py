"""Texts and their weights, as a source names them."""

from pathlib import Path

import pytest

from polycom_jax import InputError
from polycom_jax.data import DataConfig
from polycom_jax.data.weights import Part, parts, short_names


def test_weights_are_taken_by_their_ratios():
    wanted = (Part("a.txt", 0.7), Part("b.txt", 0.3))
    for words in (("a.txt=0.7", "b.txt=0.3"), ("a.txt=7", "b.txt=3"), ("a.txt=1.4", "b.txt=.6")):
        assert parts(words) == wanted
        assert DataConfig(words).source == words
    assert parts("a.txt") == (Part("a.txt", 1.0),)


def test_a_name_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert parts(("l=en/*.txt=1", "gs://b/l=de/*.txt=3")) == (
        Part("l=en/*.txt", 0.25),
        Part("gs://b/l=de/*.txt", 0.75),
    )
    assert parts("l=en/a.txt") == (Part("l=en/a.txt", 1.0),)
    assert parts("gs://b/year=2024") == (Part("gs://b/year=2024", 1.0),)
    Path("a=0.7").write_text("x")
    assert parts("a=0.7") == (Part("a=0.7", 1.0),)
    assert parts(("a=0.7=1", "b=1"))[0].source == "a=0.7"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (("a=-1", "b=1"), "weight of 'a' is -1; it must be a number from 1e-9 to 1e9"),
        (("a=0", "b=1"), "weight of 'a' is 0;"),
        (("a=nan", "b=1"), "weight of 'a' is nan;"),
        (("a=inf", "b=1"), "weight of 'a' is inf;"),
        (("a=1e999999", "b=1"), "weight of 'a' is 1e999999;"),
        (("a=1", "a=2"), "names 'a' twice; give it once, with the sum"),
        (("a", "b=1"), "'a' has no weight, and several texts are mixed by weights: write a=WEIGHT"),
        (("a=x", "b=1"), "'a=x' has no weight"),
        (("a=", "b=1"), "'a=' has no weight"),
        (("l=en/a.txt", "b=1"), "'l=en/a.txt' has no weight"),
        (("=1", "b=1"), "'=1' names no text"),
        (("a=1",), "mixture of 1 texts; name several"),
        ("a=0.7", "is a single text with a weight, .* leave =0.7 out"),
        ((), "data.source is empty"),
        (5, "data.source=5 must be text"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: tuple[str, ...], said: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as found:
        DataConfig(source)
    assert "\n" not in str(found.value)


def test_a_weighted_word_that_is_a_file_too_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("a=0.7").write_text("x")
    with pytest.raises(InputError, match=r"'a=0\.7' is the name of a file, too; .* a=0\.7=WEIGHT"):
        parts(("a=0.7", "b=0.3"))


def test_other_text_to_hold_out_does_not_go_with_several():
    with pytest.raises(InputError, match=r"data.heldout='c.txt' is of one text"):
        DataConfig(("a=1", "b=1"), heldout="c.txt")


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (("gs://b/en/*.jsonl", "text/code.jsonl.zst"), ("en", "code")),
        (("c4/en", "stdlib"), ("c4/en", "stdlib")),
        (("x/a.txt", "y/a.txt"), ("x/a.txt", "y/a.txt")),
        (("./data/wiki/", "../b/**/*.txt"), ("wiki", "b")),
    ],
)
def test_texts_are_named_by_their_file_or_folder(sources: tuple[str, ...], names: tuple[str, ...]):
    assert short_names(sources) == names
