"""Are the fields of a config what they are declared to be? Configs ask this first.

A dataclass takes any value for any field; what a command line converts, a caller does not.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from polycom_jax._errors import InputError, require, unknown

LARGEST = 2**31 - 1
"""What an int32 holds: steps, tokens and sizes are counted in it."""

LARGEST_FLOAT = 3.4e38

PATH = "a path"
PathText = Annotated[str, PATH]
"""Text that is, or may be, the path of a file or folder; programs expand `~` in it."""

PLACE = "a place"
PlaceText = Annotated[str, PATH, PLACE]
"""`PathText` that may also be in a bucket, `gs://BUCKET/PATH`."""


def check_fields(config: Any, prefix: str = "", *, wide: Iterable[str] = ()) -> None:
    """Raises `InputError` where a field holds what its annotation does not allow.

    Whole numbers are at most `LARGEST` in size, others `LARGEST_FLOAT` (or not finite, which is for
    the config itself to judge); text has no NUL and can be written as UTF-8; a name out of a closed
    set is one of it.

    Args:
        config: a dataclass instance.
        prefix: stands before the field's name in messages.
        wide: whole numbers that may be larger.
    """
    for name, hint in _hints(type(config)).items():
        limit = math.inf if name in wide else LARGEST
        _check(f"{prefix}{name}", getattr(config, name), hint, limit)


def check_value(name: str, value: Any, kind: Any) -> None:
    """`check_fields` of one value: an argument that is declared as `kind`."""
    _check(name, value, kind, LARGEST)


_RULES: Mapping[str, Callable[[Any], bool]] = {
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
    "at least 0 and finite": lambda value: 0 <= value < math.inf,
    "positive and finite": lambda value: 0 < value < math.inf,
}


def check_range(config: Any, rule: str, *names: str, prefix: str = "") -> None:
    """Raises `InputError` where one of these fields breaks a rule of `_RULES`; None breaks none."""
    for name in names:
        value = getattr(config, name)
        require(value is None or _RULES[rule](value), f"{prefix}{name}={value} must be {rule}.")


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check(name: str, value: Any, hint: Any, limit: float) -> None:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in options:
            return
        inner = [option for option in options if option is not NoneType]
        if any(is_dataclass(option) and isinstance(value, _kind(option)) for option in inner[1:]):
            return
        many = isinstance(value, tuple)
        fits = (option for option in inner if (get_origin(option) is tuple) == many)
        _check(name, value, next(fits, inner[0]), limit)
    elif origin is Literal:
        if value not in options:
            raise unknown(name, value, options)
    elif origin is tuple:
        require(isinstance(value, tuple), f"{name}={value!r} must be a tuple.")
        for index, one in enumerate(value):
            _check(f"{name}[{index}]", one, options[0], limit)
    elif is_dataclass(hint):
        require(
            isinstance(value, _kind(hint)), f"{name}={value!r} must be a {_kind(hint).__name__}."
        )
    else:
        _KINDS[hint](name, value, limit)


def _kind(hint: Any) -> type:
    return hint


def _check_bool(name: str, value: Any, limit: float) -> None:
    require(isinstance(value, bool), f"{name}={value!r} must be True or False.")


def _check_int(name: str, value: Any, limit: float) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name}={value!r} must be a whole number.")
    number = int(value)
    if abs(number) > limit:
        rule = f"at most {limit}" if number > 0 else f"at least {-limit}"
        raise InputError(f"{name}={_shown(number)} must be {rule}.")


def _check_float(name: str, value: Any, limit: float) -> None:
    number: Any = value
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{name}={value!r} must be a number.")
    if LARGEST_FLOAT < abs(number) < math.inf:
        raise InputError(
            f"{name}={_shown(value)} must be at most {LARGEST_FLOAT} in size: float32 holds no"
            " more."
        )


def _shown(value: Any) -> str:
    """A number; Python itself refuses to print one of thousands of digits."""
    long = isinstance(value, int) and abs(value) >= 10**40
    return f"a number of {value.bit_length()} bits" if long else f"{value}"


def _check_str(name: str, value: Any, limit: float) -> None:
    require(isinstance(value, str), f"{name}={value!r} must be text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}={value!r} must be text that UTF-8 can hold.") from None
    require("\0" not in value, f"{name}={value!r} must be text without NUL characters.")


_KINDS = {bool: _check_bool, int: _check_int, float: _check_float, str: _check_str}
