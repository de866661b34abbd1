"""The files of `tpu_configs/`, by the number of devices that they are made for."""

import math
import re
from pathlib import Path

import yaml

from polycom_jax._errors import InputError
from polycom_jax.compile_ahead.chips import chip_named

FOLDER = Path(__file__).resolve().parents[2] / "tpu_configs"


_NAME = re.compile(r"(?:(\d+)\*)?((?:v|tpu)\d\w*):(\d+(?:x\d+)+)")


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


def device_count(tpu_slice: str) -> int:
    """JAX devices of a slice by its name: 16 of "v5e:4x4", 512 of "2*v5e:16x16".

    Raises:
        InputError: a name of another form, or a chip that is not known.
    """
    slices, chip, topology = parts_of(tpu_slice)
    chips = math.prod(map(int, topology.split("x")))
    return slices * chips * chip_named(chip).devices_per_chip


def made_for(count: int) -> list[str]:
    """Files for so many devices, as `--config` takes them from the clone's root."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        tpu_slice = yaml.safe_load(path.read_text(encoding="utf-8"))["run"]["tpu_slice"]
        if device_count(tpu_slice) == count:
            found.append(f"tpu_configs/{path.name}")
    return found
