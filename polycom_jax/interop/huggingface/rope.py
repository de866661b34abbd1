"""Rotary frequencies in a `config.json`: their base, and Llama 3's rescaling of them."""

from collections.abc import Mapping
from typing import Any

from polycom_jax._errors import InputError, require
from polycom_jax.interop.huggingface.fields import COUNT, POSITIVE, check_kind, is_number, short
from polycom_jax.models import RopeScaling

THETA = 10_000.0
"""The base where nothing is said, of all families but Apertus."""

APERTUS: Mapping[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 12_000_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
"""What Apertus takes where neither schema says anything."""

_PLACES = ("rope_scaling", "rope_parameters")
_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor")
_LENGTH = "original_max_position_embeddings"


def read_rope(
    stored: Mapping[str, Any], default: Mapping[str, Any] | None = None
) -> tuple[float, RopeScaling]:
    """(base, rescaling) of the rotary frequencies, wherever they stand.

    transformers reads `rope_scaling` (of its release 4) in place of `rope_parameters` (5) where
    that says anything, and the outer `rope_theta` where neither has one; in both the type may be
    called `rope_type` or `type`.

    Args:
        stored: the config.json.
        default: what stands for `rope_parameters` where neither says anything.

    Raises:
        InputError: another rescaling than Llama 3's, or two places differ.
    """
    places = {name: stored[name] for name in _PLACES if stored.get(name)}
    if not places and default is not None:
        _check_left_out(stored, default)
        places["rope_parameters"] = default
    scalings = [_scaling(stored, name, place) for name, place in places.items()]
    require(
        all(other == scalings[0] for other in scalings),
        "config.json: rope_scaling and rope_parameters rescale frequencies differently; make them"
        " equal or remove the wrong one.",
    )
    read = next(iter(places.values()), {})
    base = read.get(
        "rope_theta", stored.get("rope_theta", (default or {}).get("rope_theta", THETA))
    )
    given = {name: place["rope_theta"] for name, place in places.items() if "rope_theta" in place}
    given |= {"the outer": stored["rope_theta"]} if "rope_theta" in stored else {}
    for name, other in given.items():
        if other != base:
            raise InputError(
                f"config.json: rope_theta={base} and {name}'s rope_theta={other} contradict each"
                " other; make them equal or remove the wrong one."
            )
    return float(base), next(iter(scalings), RopeScaling())


def _check_left_out(stored: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    """Raises `InputError` where releases of transformers read what is left out differently."""
    theta = default["rope_theta"]
    said = ["rope_scaling"] if "rope_scaling" in stored else []
    said += ["rope_parameters"] if stored.get("rope_parameters") == {} else []
    said += ["rope_theta"] if stored.get("rope_theta", theta) != theta else []
    require(
        not said,
        f"config.json: {' and '.join(f'{name}={short(stored[name])}' for name in said)}: releases"
        " of transformers differ in what that means without a rope_type; write rope_parameters"
        " out, with rope_type and rope_theta.",
    )


def _scaling(stored: Mapping[str, Any], name: str, place: Mapping[str, Any]) -> RopeScaling:
    where = f"config.json: {name}"
    kind = place.get("rope_type", place.get("type", "default"))
    called = "rope_type" if "rope_type" in place else "type"
    _check_place(where, place)
    # Frequencies divided by one are the frequencies.
    if kind == "default" or (kind == "linear" and place.get("factor") in (1, 1.0)):
        return RopeScaling()
    require(
        kind == "llama3",
        f"{where}.{called}={kind!r} rescales rotary frequencies as our models do not; 'default' or"
        f" 'llama3' is needed, and {name}={short(place)} came.",
    )
    missing = [name for name in _NUMBERS if name not in place]
    require(not missing, f"{where}.{called}='llama3' lacks {', '.join(missing)}.")
    return _llama3(stored, where, place)


def _check_place(where: str, place: Mapping[str, Any]) -> None:
    check_kind(f"{where}.rope_theta", place.get("rope_theta", 1.0), POSITIVE)
    part = place.get("partial_rotary_factor", 1.0)
    require(
        part is None or (is_number(part) and part == 1),
        f"{where}.partial_rotary_factor={part!r}: our models turn whole heads; 1.0 is needed.",
    )
    nested = [key for key, value in place.items() if isinstance(value, dict)]
    require(
        not nested,
        f"{where} has its own for {', '.join(nested)}: our layers are all alike; one is needed.",
    )


def _llama3(stored: Mapping[str, Any], where: str, place: Mapping[str, Any]) -> RopeScaling:
    for name in _NUMBERS:
        check_kind(f"{where}.{name}", place[name], POSITIVE)
    # The outer one goes before the inner one in transformers; absent, it is the context.
    lengths = [place[_LENGTH]] if _LENGTH in place else []
    lengths += [stored[_LENGTH]] if _LENGTH in stored else []
    lengths = lengths or [stored.get("max_position_embeddings")]
    for length in lengths:
        check_kind(f"{where}: {_LENGTH}", length, COUNT)
    require(
        len(set(lengths)) == 1,
        f"{where}.{_LENGTH}={lengths[0]} and the outer {_LENGTH}={lengths[-1]} contradict each"
        " other; make them equal or remove the wrong one.",
    )
    if place["factor"] == 1:
        return RopeScaling()
    try:
        numbers: dict[str, float] = {name: float(place[name]) for name in _NUMBERS}
        return RopeScaling(**numbers, original_context_length=lengths[0])
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def rope_to_json(theta: float, scaling: RopeScaling, *, spelled_out: bool) -> dict[str, Any]:
    """Both schemas of RoPE, for transformers 4 and 5.

    Args:
        theta: base of the frequencies.
        scaling: their rescaling.
        spelled_out: write `rope_scaling`, too, where nothing is rescaled.
    """
    about: dict[str, Any] = {"rope_type": "default"}
    if scaling.factor != 1:
        about = {
            "rope_type": "llama3",
            "factor": float(scaling.factor),
            "low_freq_factor": float(scaling.low_freq_factor),
            "high_freq_factor": float(scaling.high_freq_factor),
            _LENGTH: scaling.original_context_length,
        }
    base = {"rope_theta": float(theta)}
    old = {"rope_scaling": about} if spelled_out or scaling.factor != 1 else {}
    return {**base, **old, "rope_parameters": {**about, **base}}
