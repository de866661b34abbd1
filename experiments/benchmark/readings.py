"""Predictions kept in a file, by program: a benchmark that was stopped goes on where it was.

A program is known by its text before the compiler and by all that a prediction is made of, so that
nothing is taken over that would be another number today.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from experiments.terminal.paths import naming
from polycom_jax import compile_ahead as aot
from polycom_jax.compile_ahead.platforms import compiler_version

_LEFT_OUT = ("chip", "rows", "collectives")
"""Fields of a prediction that no table of a benchmark shows, and the chip, known by its name."""


@dataclass(frozen=True)
class Readings:
    """A file of predictions, a line each.

    Attributes:
        path: of the file, which need not exist.
    """

    path: Path

    def predict(
        self, lowered: jax.stages.Lowered, chip: str, xla: Mapping[str, Any]
    ) -> aot.Prediction:
        """The prediction of a program: read, or compiled for and then written.

        Raises:
            DoesNotFit: it needs more memory than the chip has; nothing is written.
        """
        key = program_key(lowered, chip, xla)
        kept = self._kept.get(key)
        if kept is None:
            made = asdict(aot.predict(aot.compile(lowered, compiler_options=xla)))
            kept = {name: value for name, value in made.items() if name not in _LEFT_OUT}
            self._kept[key] = kept
            self._append({"program": key, "chip": chip, **kept})
        kept = {**kept, "not_estimated": tuple(kept["not_estimated"])}
        return aot.Prediction(chip=aot.CHIPS[chip], rows=(), collectives=(), **kept)

    @functools.cached_property
    def _kept(self) -> dict[str, dict[str, Any]]:
        """What the file holds; a line that was not written to its end counts for nothing."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("}\n")]
        names = {field.name for field in fields(aot.Prediction)}.difference(_LEFT_OUT)
        return {
            record["program"]: {name: record[name] for name in names}
            for record in records
            if names <= set(record)
        }

    def _append(self, record: Mapping[str, Any]) -> None:
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                torn = file.seek(0, os.SEEK_END) and not _ends_a_line(file)
                file.write(("\n" * torn + json.dumps(record) + "\n").encode())


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def program_key(lowered: jax.stages.Lowered, chip: str, xla: Mapping[str, Any]) -> str:
    """A digest of the program, the chip's numbers, the compiler, its options and the predictor."""
    found = aot.CHIPS[chip]
    what = {
        "program": lowered.as_text(),
        "chip": repr(found),
        "compiler": compiler_version(found),
        "options": sorted((name, str(value)) for name, value in xla.items()),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "predictor": _predictor(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _predictor() -> str:
    """A digest of the sources that turn a compiled program into numbers."""
    digest = hashlib.sha256()
    for folder in (resources.files(aot), resources.files(aot) / "gpu_targets"):
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if file.is_file() and file.name.endswith((".py", ".txtpb")):
                digest.update(file.read_bytes())
    return digest.hexdigest()
