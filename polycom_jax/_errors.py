"""One voice for bad input: what was expected, what came, the likely fix."""

import difflib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Something that came from outside is not usable; the message says what and how to mend it.

    Programs print the message as one line and exit with a non-zero code. Any other exception is a
    defect of ours and keeps its traceback.
    """


class InputWarning(UserWarning):
    """Something that came from outside is used, but not all of it; the message says what is not.

    Programs print the message as one line.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Builds the error for a name outside a closed set: it lists the set and the nearest member."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def old_name(module: str, name: str, renamed: Mapping[str, Any]) -> Any:
    """What a module's `__getattr__` returns for `name`, with a warning: what it is called now."""
    if name not in renamed:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    text = (
        f"{module}.{name} is now {renamed[name].__name__}; the old name goes with the next release."
    )
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return renamed[name]


def require(condition: bool, message: str) -> None:
    """Raises `InputError` unless `condition` holds; `message` names field, value and rule."""
    if not condition:
        raise InputError(message)
