"""Whether the results in a folder were made with the settings of a command."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from experiments.run.files import json_text, write_json
from polycom_jax import storage
from polycom_jax._errors import require

Changes = Mapping[str, tuple[Any, Any]]
"""Setting -> (stored value, value now)."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """What differs of the settings that there are now; earlier versions may have stored more."""
    return {
        name: (before.get(name), now[name]) for name in sorted(now) if before.get(name) != now[name]
    }


def listed(changed: Changes) -> str:
    """All of them in a line, both values named."""
    return "; ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items())


def check_settings(
    path: storage.Place,
    settings: Mapping[str, Any],
    *,
    free: Collection[str] = (),
    holds: str,
    advice: str,
) -> None:
    """Stores the settings that all results of a folder have in common; those there must be equal.

    Args:
        path: the file for them, in that folder.
        settings: of the command.
        free: names of those that may differ.
        holds: what the folder holds.
        advice: what to do where they differ, a sentence or two.

    Raises:
        InputError: the results were made with other settings; both values are named.
    """
    now = json.loads(json.dumps(settings))  # tuples as lists
    if not storage.is_made(path) and storage.create(path, json_text(now).encode()):
        return  # of two programs that begin at once, the other finds them
    before = json.loads(storage.read(path))
    common = {name: value for name, value in now.items() if name not in free}
    changed = changes(before, common)
    other = f"{path.parent} holds {holds} ({listed(changed)})"
    require(not changed, f"{other}. {advice}")
    write_json(path, {**before, **now})
