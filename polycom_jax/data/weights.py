"""Which texts a source names, and how much of training each has."""

import os
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

from polycom_jax._errors import InputError, require
from polycom_jax.storage import is_remote

LEAST, MOST = Decimal("1e-9"), Decimal("1e9")
"""Bounds of a weight: beyond them a text is not read at all, or is the only one that is."""

_WEIGHTED = re.compile(r"(?P<text>.*)=(?P<weight>[^=/]*)", re.DOTALL)


class Part(NamedTuple):
    """One of the texts that are trained on.

    Attributes:
        source: as `DataConfig.source` names one text.
        weight: its share of the windows; those of all texts sum to 1.
    """

    source: str
    weight: float


def parts(source: str | tuple[str, ...]) -> tuple[Part, ...]:
    """The texts of a `DataConfig.source`: one, or several written TEXT=WEIGHT.

    Weights are taken by their ratios: a=7 b=3 is a=0.7 b=0.3. A text's own name may hold `=`; the
    weight is what follows the last one.

    Raises:
        InputError: a weight is missing, no number, or not from 1e-9 to 1e9; it is of a single text;
            a text is named twice; or a word is both a weighted text and the name of a file.
    """
    if isinstance(source, str):
        _check_single(source)
        return (Part(source, 1.0),)
    require(
        len(source) > 1,
        f"data.source={source!r} is a mixture of {len(source)} texts; name several, or one as plain"
        " text.",
    )
    found = [_weighted(word) for word in source]
    names = [name for name, _ in found]
    for name in names:
        require(
            names.count(name) == 1,
            f"data.source names {name!r} twice; give it once, with the sum of the weights.",
        )
    total = sum(weight for _, weight in found)
    return tuple(Part(name, float(weight / total)) for name, weight in found)


def short_names(sources: Sequence[str]) -> tuple[str, ...]:
    """What metrics call texts: a file or folder by its name, if these differ; else as given.

    `gs://b/en/*.jsonl` is `en`, `text/code.jsonl.zst` is `code`, and a name of TFDS stays whole.
    """
    short = tuple(map(_short, sources))
    return short if len(set(short)) == len(short) else tuple(sources)


def _short(source: str) -> str:
    if not _is_there(source) and not re.search(r"[*?\[~.]|://", source):
        return source  # of TFDS
    names = [name for name in source.split("/") if name and not re.search(r"[*?\[]", name)]
    return names[-1].partition(".")[0] or names[-1] if names else source


def _check_single(source: str) -> None:
    match = _WEIGHTED.fullmatch(source)
    if match is None or _number(match["weight"]) is None or _is_there(source):
        return
    require(
        is_remote(source),
        f"data.source={source!r} is a single text with a weight, and there is no file of this name;"
        f" leave ={match['weight']} out, or name several texts as TEXT=WEIGHT.",
    )


def _weighted(word: str) -> tuple[str, Fraction]:
    match = _WEIGHTED.fullmatch(word)
    weight = _number(match["weight"]) if match else None
    if match is None or weight is None:
        raise InputError(
            f"data.source: {word!r} has no weight, and several texts are mixed by weights: write"
            f" {word.rpartition('=')[0] or word}=WEIGHT for each, or quote a glob that is one text."
        )
    require(
        weight.is_finite() and LEAST <= weight <= MOST,
        f"data.source: the weight of {match['text']!r} is {match['weight']}; it must be a number"
        " from 1e-9 to 1e9.",
    )
    require(bool(match["text"]), f"data.source: {word!r} names no text before its weight.")
    require(
        not _is_there(word),
        f"data.source: {word!r} is the name of a file, too; give that file as {word}=WEIGHT, or"
        " rename it.",
    )
    return match["text"], Fraction(weight)


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _is_there(name: str) -> bool:
    return not is_remote(name) and os.path.lexists(os.path.expanduser(name))
