"""The files of `tpu_configs/`, by the number of chips that they are made for."""

import math
import re
from pathlib import Path

import yaml

from polycom_jax._errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "tpu_configs"


_NAME = re.compile(r"(?:(\d+)\*)?(v\w+):(\d+(?:x\d+)+)")


def parts_of(tpu_slice: str) -> tuple[int, str, str]:
    """Number of slices, chip and topology: 2, "v5e" and "16x16" of "2*v5e:16x16".

    Raises:
        InputError: a name of another form.
    """
    found = _NAME.fullmatch(tpu_slice)
    if found is None:
        raise InputError(
            f"TPU slice {tpu_slice!r} must be CHIP:TOPOLOGY, as v5e:4x4 or v5p:4x4x4; two slices"
            " are 2*v5e:16x16."
        )
    return int(found[1] or 1), found[2], found[3]


def chips(tpu_slice: str) -> int:
    """Chips of a slice by its name: 16 of "v5e:4x4", 512 of "2*v5e:16x16"."""
    slices, _, topology = parts_of(tpu_slice)
    return slices * math.prod(map(int, topology.split("x")))


def made_for(count: int) -> list[str]:
    """Files for so many chips, as `--config` takes them from the clone's root."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        tpu_slice = yaml.safe_load(path.read_text(encoding="utf-8"))["run"]["tpu_slice"]
        if chips(tpu_slice) == count:
            found.append(f"tpu_configs/{path.name}")
    return found
