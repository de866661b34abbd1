"""Checkpoints in a bucket, where nothing can be renamed: which stand, and which are set aside.

A checkpoint lies in `STEP`, or in `STEP.N` where the N checkpoints of that step before it were set
aside. An object in a checkpoint's folder sets it aside; all others in it stay as they are.

A listing only proposes names, and one that comes through a cache may lack the newest of them. So
each save first writes down, in an object of a fixed name, its own and those that stand. Whether a
checkpoint is finished, or set aside, is asked of its objects by their names.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from etils import epath

from polycom_jax import storage
from polycom_jax.storage import Place

COMMITTED = "commit_success.txt"
"""The object that Orbax writes last."""

SET_ASIDE = "set-aside.json"
"""The object that sets a checkpoint aside: with the proof, where it is damaged."""

ANNOUNCED = "announced.json"
"""The object, beside the checkpoints, with the names that the last save knew of."""

_RETRIES = {"max_retries": 7, "initial_delay": "500ms", "max_delay": "8s"}
"""How TensorStore asks a server again that is away: for half a minute, as its context wants it."""

_NAME = re.compile(r"(0|[1-9][0-9]*)(?:\.([1-9][0-9]*))?")
_THREADS = 8


@dataclass(frozen=True)
class Steps:
    """What a folder of checkpoints holds.

    Attributes:
        names: step -> name of its folder, of the finished ones that are not set aside.
        aside: names of the folders that are.
    """

    names: Mapping[int, str]
    aside: tuple[str, ...]

    def new_name(self, step: int) -> str:
        """The folder for a checkpoint of `step`: the one that stands, else one that is free."""
        number = max((life for name in self.aside if (life := _life(name, step)) >= 0), default=-1)
        return self.names.get(step, f"{step}.{number + 1}" if number >= 0 else str(step))


def steps_in(folder: Place) -> Steps:
    """Looks at a folder of checkpoints.

    Raises:
        OSError: it cannot be listed.
    """
    found = {*storage.folders(folder), *_announced(folder)}
    names = sorted(name for name in found if _NAME.fullmatch(name))
    with ThreadPoolExecutor(_THREADS) as threads:
        done = list(threads.map(lambda name: storage.is_file(folder / name / COMMITTED), names))
        away = list(threads.map(lambda name: storage.is_file(folder / name / SET_ASIDE), names))
    aside = [name for name, out in zip(names, away, strict=True) if out]
    standing = [name for name, ends, out in zip(names, done, away, strict=True) if ends and not out]
    standing.sort(key=_key)  # of two of one step, the later one
    return Steps({_key(name)[0]: name for name in standing}, tuple(aside))


def announce(folder: Place, step: int) -> None:
    """Writes down the names that whoever resumes has to know of, before a save of `step` begins.

    Raises:
        OSError: the bucket cannot be read or written.
    """
    steps = steps_in(folder)
    names = {*steps.names.values(), *steps.aside, steps.new_name(step)}
    storage.write(folder / ANNOUNCED, json.dumps({"names": sorted(names, key=_key)}).encode())


def _announced(folder: Place) -> list[str]:
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        return [str(name) for name in json.loads(storage.read(folder / ANNOUNCED))["names"]]
    return []


def bound_retries() -> None:
    """Tells TensorStore, as Orbax calls it, for how long to ask a bucket's server that is away.

    Of itself it asks on for a quarter of an hour, in each step of a save. Orbax has no option for
    that, and copies the contexts that it gives to TensorStore from these two tables.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils

    tables: Any = tensorstore_utils
    for table in (tables._BASE_TS_CONTEXT, tables._DEFAULT_OCDBT_TS_CONTEXT):
        table.setdefault("gcs_request_retries", dict(_RETRIES))


def set_aside(folder: Place, step: int, proof: str) -> None:
    """Sets a checkpoint aside; `proof` says what is wrong with it, "" nothing.

    Raises:
        OSError: the bucket cannot be written.
    """
    name = steps_in(folder).names.get(step)
    if name is not None:
        text = json.dumps({"damaged": proof}).encode()
        storage.write(folder / name / SET_ASIDE, text)


def proofs(folder: Place) -> dict[str, tuple[str, int]]:
    """Of each that is set aside, by name: what is wrong with it, and a number that grows with time.

    Raises:
        OSError: the bucket cannot be read.
    """
    found = {}
    for name in steps_in(folder).aside:
        text, generation = storage.read_with_generation(folder / name / SET_ASIDE)
        with contextlib.suppress(ValueError):
            found[name] = (str(json.loads(text)["damaged"]), generation)
    return found


def delete(folder: Place, name: str) -> None:
    """Deletes a checkpoint that is set aside; cut short, it is one that was never finished.

    Raises:
        OSError: the bucket cannot be written.
    """
    storage.remove(folder / name / COMMITTED)
    storage.remove_tree(folder / name)


class StepNames:
    """Orbax's `NameFormat` of a folder in a bucket, as it was when a run began to write to it.

    Every process makes one before any of them saves, so all give the same names.
    """

    def __init__(self, folder: Place) -> None:
        self._steps = steps_in(folder)

    def build_name(self, step: int) -> str:
        """The name of the folder that the checkpoint of `step` is in, or is going to be."""
        return self._steps.new_name(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """What Orbax keeps of each finished checkpoint."""
        import orbax.checkpoint as ocp

        folder = epath.Path(base_path)
        for step, name in steps_in(folder).names.items():
            yield ocp.step.Metadata(step=step, path=folder / name)

    def find_step(self, base_path: Any, step: int) -> Any:
        """What Orbax keeps of the finished checkpoint of `step`.

        Raises:
            ValueError: there is none.
        """
        for found in self.find_all(base_path):
            if found.step == step:
                return found
        raise ValueError(f"There is no checkpoint of step {step} in {base_path}.")


def _key(name: str) -> tuple[int, int]:
    """Step, and how many of it were set aside before."""
    step, _, life = name.partition(".")
    return int(step), int(life or 0)


def _life(name: str, step: int) -> int:
    number, life = _key(name)
    return life if number == step else -1
