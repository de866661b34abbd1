"""The files of `tpu_configs/`, by the number of devices that they are made for."""

import math
import re
from pathlib import Path

import yaml

from polycom_jax._errors import InputError, unknown
from polycom_jax.compile_ahead.chips import GPUS, chip_named

FOLDER = Path(__file__).resolve().parents[2] / "tpu_configs"


_TPUS = re.compile(r"(?:(\d+)\*)?((?:v|tpu)\d\w*):(\d+(?:x\d+)+)")
_GPUS = re.compile(r"(?:(\d+)\*)?gpu:(\w+)")


def parts_of(hardware: str) -> tuple[int, str, str]:
    """Number of slices, chip and topology: 2, "v5e" and "16x16" of "2*v5e:16x16".

    Of GPUs, one machine's: 1, "h100" and "8" of "8*gpu:h100".

    Raises:
        InputError: a name of another form, or a card that is not known.
    """
    if gpus := _GPUS.fullmatch(hardware):
        if gpus[2] not in GPUS:
            raise unknown("GPU", gpus[2], GPUS)
        return 1, gpus[2], gpus[1] or "1"
    found = _TPUS.fullmatch(hardware)
    if found is None:
        raise InputError(
            f"Hardware {hardware!r} must be a TPU slice, CHIP:TOPOLOGY as v5e:4x4 or v5p:4x4x4, two"
            " of them 2*v5e:16x16; or GPUs, gpu:CARD as gpu:t4, eight of them 8*gpu:h100."
        )
    return int(found[1] or 1), found[2], found[3]


def device_count(hardware: str) -> int:
    """JAX devices by a name of hardware: 16 of "v5e:4x4", 512 of "2*v5e:16x16", 8 of "8*gpu:h100".

    Raises:
        InputError: a name of another form, or a chip that is not known.
    """
    slices, chip, topology = parts_of(hardware)
    chips = math.prod(map(int, topology.split("x")))
    return slices * chips * chip_named(chip).devices_per_chip


def made_for(count: int) -> list[str]:
    """Files for so many devices, as `--config` takes them from the clone's root."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        hardware = yaml.safe_load(path.read_text(encoding="utf-8"))["run"]["hardware"]
        if device_count(hardware) == count:
            found.append(f"tpu_configs/{path.name}")
    return found
