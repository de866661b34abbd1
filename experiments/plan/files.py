"""The files of `tpu_configs/`, by the number of chips that they are made for."""

import math
import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "tpu_configs"


def chips(tpu_slice: str) -> int:
    """Chips of a slice by its name: 16 of "v5e:4x4", 512 of "2*v5e:16x16"."""
    slices, _, one = tpu_slice.rpartition("*")
    return int(slices or 1) * math.prod(map(int, re.findall(r"\d+", one.partition(":")[2])))


def made_for(count: int) -> list[str]:
    """Files for so many chips, as `--config` takes them from the clone's root."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        tpu_slice = yaml.safe_load(path.read_text(encoding="utf-8"))["run"]["tpu_slice"]
        if chips(tpu_slice) == count:
            found.append(f"tpu_configs/{path.name}")
    return found
