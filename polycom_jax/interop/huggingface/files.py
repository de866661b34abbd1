"""Safetensors files of a folder, read tensor by tensor and written shard by shard."""

import contextlib
import json
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from polycom_jax import storage
from polycom_jax._errors import InputError, require

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16", "float16")
"""What weights may be written in."""
READABLE = ("F32", "BF16", "F16", "F64")
"""What they may be kept in, by safetensors' names; float64 is rounded."""


def _safetensors() -> ModuleType:
    try:
        import safetensors
    except ImportError as error:
        raise InputError(
            "Hugging Face folders need the package safetensors: pip install 'polycom-jax[interop]'."
        ) from error
    return safetensors


class Tensors:
    """The tensors of a folder.

    A file is open only while something is read: pages of an open one that were read once count as
    the process's memory, and after the last tensor that would be a second copy of the model.

    Attributes:
        shapes: of each tensor, from the files' headers.
        problems: what does not fit within the folder itself, in words.

    Raises:
        InputError: no safetensors files, or one that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.problems: list[str] = []
        self._folder = folder
        self._where: dict[str, tuple[Path, str]] = {}  # with its name in that file
        index, whole = folder / INDEX, folder / SINGLE
        require(
            whole.is_file() or index.is_file(),
            f"{folder} holds neither {SINGLE} nor {INDEX}; files of another kind (.bin) become them"
            " by transformers' save_pretrained.",
        )
        if whole.is_file():  # transformers takes it, too, where both are there
            self._read_header(whole)
        else:
            self._read_index(index)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype that it is kept in."""
        path, inside = self._where[name]
        with _safetensors().safe_open(path, framework="np") as file:
            return file.get_tensor(inside)

    def rename(self, old: str, new: str) -> None:
        """The tensor is called `new` from now on."""
        self.shapes[new], self._where[new] = self.shapes.pop(old), self._where.pop(old)

    def _read_index(self, index: Path) -> None:
        listed: Any = read_json(index).get("weight_map")
        require(
            isinstance(listed, dict) and bool(listed) and all(map(_is_name, listed.values())),
            f"{index} has no weight_map from tensors to names of files in this folder.",
        )
        for file in sorted(set(listed.values())):
            if not (self._folder / file).is_file():
                self.problems.append(f"file {file} is missing")
                continue
            inside = self._read_header(self._folder / file)
            away = [name for name in inside if listed.get(name) != file]
            self.problems += [f"{name} is in {file} against the index" for name in away]
        absent = listed.keys() - self.shapes.keys()
        self.problems += [f"{name} is in the index alone" for name in sorted(absent)]

    def _read_header(self, path: Path) -> list[str]:
        safetensors = _safetensors()
        try:
            with safetensors.safe_open(path, framework="np") as file:
                headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found = {n: (tuple(h.get_shape()), h.get_dtype()) for n, h in headers.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged, or no safetensors file: {error}.") from error
        for name, (shape, dtype) in found.items():
            if name in self.shapes:
                self.problems.append(f"{name} is there twice")
                continue
            self.shapes[name], self._where[name] = shape, (path, name)
            if dtype not in READABLE:
                self.problems.append(f"{name} is of dtype {dtype}, not {', '.join(READABLE)}")
        return list(found)


def _is_name(file: Any) -> bool:
    return isinstance(file, str) and file == Path(file).name != ""


def read_json(path: storage.Place) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: no such file, or it holds none.
    """
    require(storage.is_file(path), f"There is no {path.name} in {path.parent}.")
    try:
        stored = json.loads(storage.read(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    except (OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    require(isinstance(stored, dict), f"{path} must hold an object, not {type(stored).__name__}.")
    return stored


def write_json(path: Path, stored: dict[str, Any]) -> None:
    """Writes the object to a JSON file."""
    path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


def check_empty(folder: storage.Place) -> None:
    """Raises `InputError` where the folder holds a model already."""
    there = [p.name for kind in ("*.safetensors", INDEX, "config.json") for p in folder.glob(kind)]
    require(
        not there,
        f"{folder} holds {', '.join(sorted(there)[:3])} already; give another folder, or empty it.",
    )


@contextlib.contextmanager
def all_or_nothing(folder: storage.Place) -> Generator[None]:
    """Makes the folder; what was written to it goes again where the rest fails, or is stopped."""
    with _in_bucket(folder) if storage.is_remote(folder) else _on_disk(Path(folder)):
        yield


@contextlib.contextmanager
def _in_bucket(folder: storage.Place) -> Generator[None]:
    before = storage.entries(folder).keys()
    try:
        yield
    except BaseException:
        for name in storage.entries(folder).keys() - before:
            storage.remove(folder / name)
        raise


@contextlib.contextmanager
def _on_disk(folder: Path) -> Generator[None]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in made:
            with contextlib.suppress(OSError):  # another process may have put something there
                path.rmdir()
        raise


@contextlib.contextmanager
def _usual_mode(path: Path) -> Generator[Path]:
    """Leaves a file with the mode that the umask gives; safetensors' own is for its owner alone."""
    path.touch()
    mode = path.stat().st_mode
    yield path
    path.chmod(mode)


def shards(sizes: Sequence[tuple[str, int]], shard_bytes: int) -> list[tuple[str, list[str]]]:
    """(file name, tensors in it): consecutive tensors of at most `shard_bytes` together, or one."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes:
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return [(SINGLE, groups[0])]
    last = len(groups)
    return [
        (f"model-{n:05d}-of-{last:05d}.safetensors", names) for n, names in enumerate(groups, 1)
    ]


def write_shards(
    folder: Path,
    plan: Sequence[tuple[str, list[str]]],
    values: Iterable[tuple[str, np.ndarray]],
    total_bytes: int,
    *,
    progress: Callable[[int, int], None],
) -> None:
    """Writes the files and, where there are several, their index; holds one file's tensors.

    Args:
        folder: of the files.
        plan: from `shards`.
        values: every tensor, in the plan's order.
        total_bytes: of all tensors.
        progress: takes (files written, files).
    """
    _safetensors()
    from safetensors.numpy import save_file

    stream: Iterator[tuple[str, np.ndarray]] = iter(values)
    for done, (file, names) in enumerate(plan, 1):
        held = {}
        for expected in names:
            name, value = next(stream)
            assert name == expected, f"{name} comes where {expected} should"
            held[name] = np.asarray(value, order="C")  # ascontiguousarray makes scalars vectors
        with _usual_mode(folder / file) as path:
            save_file(held, path, metadata={"format": "pt"})
        progress(done, len(plan))
    if len(plan) > 1:
        where = {name: file for file, names in plan for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": where})
