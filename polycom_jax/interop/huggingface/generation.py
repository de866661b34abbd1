"""What a Hugging Face folder says of where texts begin and end: ids, generation_config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycom_jax._errors import InputError
from polycom_jax.interop.huggingface.fields import KINDS, check_kind
from polycom_jax.interop.huggingface.files import read_json, write_json

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
FILE = "generation_config.json"


@dataclass(frozen=True)
class Generation:
    """Handed on as it came; of all this `ends` alone has a meaning here.

    Attributes:
        ids: those of `IDS` that stand in config.json.
        config: what generation_config.json holds; None: there is none.
    """

    ids: Mapping[str, Any]
    config: Mapping[str, Any] | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text: generation_config's, else config.json's; there may be none."""
        stated = (self.config or {}).get("eos_token_id")
        stated = self.ids.get("eos_token_id") if stated is None else stated
        if stated is None:
            return ()
        return tuple(stated) if isinstance(stated, list) else (stated,)

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {"ids": dict(self.ids), "config": self.config}


def from_json(stored: Mapping[str, Any], where: str) -> Generation:
    """What `Generation.to_json` gave; `where` names the file.

    Raises:
        InputError: something else.
    """
    ids, config = stored.get("ids"), stored.get("config")
    if not isinstance(ids, dict) or not isinstance(config, dict | None):
        raise InputError(f"{where} is not as a run has written it; bring the old file back.")
    for place in (ids, config or {}):
        for name in IDS:
            check_kind(f"{where}: {name}", place.get(name), KINDS[name])
    return Generation(ids, config)


def read_generation(folder: Path) -> Generation:
    """What a Hugging Face folder says.

    Raises:
        InputError: a file that holds no object, or ids that are none.
    """
    stored = read_json(folder / "config.json")
    ids = {name: stored[name] for name in IDS if name in stored}
    file = folder / FILE
    config = read_json(file) if file.is_file() else None
    return from_json({"ids": ids, "config": config}, str(folder))


def write_generation(folder: Path, generation: Generation) -> None:
    """Writes generation_config.json, if there was one; the ids go to config.json."""
    if generation.config is not None:
        write_json(folder / FILE, dict(generation.config))
