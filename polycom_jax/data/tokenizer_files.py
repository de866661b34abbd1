"""What lies beside a `tokenizer.json`: files that name its end of text, a chat template, others."""

import json
from collections.abc import Mapping
from typing import Any

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.storage import Place

NAME = "tokenizer.json"
CONFIG = "tokenizer_config.json"
FILES = (
    *(CONFIG, "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)
TEMPLATES = "additional_chat_templates"
"""The folder of more of them, *.jinja. They go with a tokenizer wherever it is saved."""


def read_beside(path: Place) -> dict[str, bytes]:
    """The contents of those of `FILES` and `TEMPLATES` that lie beside a file of the usual name.

    Raises:
        InputError: one cannot be read.
    """
    if path.name != NAME:
        return {}
    folder = path.parent
    more = [f"{TEMPLATES}/{name}" for name in sorted(storage.entries(folder / TEMPLATES))]
    names = (*FILES, *(name for name in more if name.endswith(".jinja")))
    return {name: _bytes(folder / name) for name in names if storage.is_file(folder / name)}


def write_beside(path: Place, files: Mapping[str, bytes]) -> None:
    """Writes them beside a tokenizer's file."""
    for name, text in files.items():
        storage.write(path.parent / name, text)


def begin_ids(model: Any) -> tuple[int, ...]:
    """What a tokenizer's own post-processor puts before a text."""
    alone = _marked(model, "")
    if not alone:
        return ()
    try:
        marked = _marked(model, "a")
    except Exception:  # The binding raises plain `Exception` where it has no id for this text.
        marked = alone
    added = [special for _, special in marked]
    first = added.index(False) if False in added else len(alone)
    return tuple(index for index, _ in marked[:first])


def _marked(model: Any, text: str) -> list[tuple[int, bool]]:
    """The ids of a text, padding left out, and which of them the post-processor has put there."""
    found = model.encode(text, add_special_tokens=True)
    masks = zip(found.ids, found.attention_mask, found.special_tokens_mask, strict=True)
    return [(index, bool(special)) for index, shown, special in masks if shown]


def end_named(files: dict[str, bytes], model: Any, folder: Place) -> int | None:
    """The id of the `eos_token` that a tokenizer's own files name; None: they name none.

    Raises:
        InputError: a file that holds no object, or a token that the tokenizer does not have.
    """
    for name in FILES[:2]:
        if name not in files:
            continue
        token = _object(folder / name, files[name]).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            continue
        index = model.token_to_id(token) if isinstance(token, str) else None
        if index is None:
            raise InputError(
                f"{folder / name}: eos_token={token!r} is no token of {NAME} beside it."
            )
        return index
    return None


def end_numbered(path: Place, model: Any) -> int | None:
    """The first `eos_token_id` of the model that a tokenizer lies beside; None: none is stated.

    Raises:
        InputError: a file that holds no object, or what is no id of the tokenizer.
    """
    for name in ("config.json", "generation_config.json") if path.name == NAME else ():
        file = path.with_name(name)
        if not storage.is_file(file):
            continue
        ids = _object(file, _bytes(file)).get("eos_token_id")
        index = (ids[0] if ids else None) if isinstance(ids, list) else ids
        if index is None:
            continue
        known = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < 2**31
        require(
            known and model.id_to_token(index) is not None,
            f"{file}: eos_token_id={index!r} is no id of {NAME} beside it.",
        )
        return index
    return None


def with_end(files: dict[str, bytes], token: str) -> dict[str, bytes]:
    """The files, with this `eos_token` in tokenizer_config.json."""
    about = json.loads(files.get(CONFIG, b'{"tokenizer_class": "PreTrainedTokenizerFast"}'))
    return files | {CONFIG: json_bytes(about | {"eos_token": token})}


def json_bytes(tree: Any) -> bytes:
    """A JSON file's contents."""
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()


def _bytes(file: Place) -> bytes:
    try:
        return storage.read(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error


def _object(file: Place, text: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error
    require(isinstance(tree, dict), f"{file} must hold an object, not {type(tree).__name__}.")
    return tree
