"""Files of text of every kind, and what prepared data are the same whatever made them."""

import gzip
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polycom_jax.data import Corpus


def zstd(data: bytes) -> bytes:
    """A frame, without a checksum."""
    return pa.compress(data, codec="zstd", asbytes=True)


def texts(count: int, name: str = "document") -> list[str]:
    """Texts that all differ, some of several lines."""
    return [f"{name} {i}: naïve 🙂 {'word ' * (i % 13)}\n{'x' * (i % 5)}" for i in range(count)]


def json_lines(found: list[str]) -> bytes:
    """A JSON object a line, blank lines between some."""
    lines = (json.dumps({"text": text}) + "\n" * (1 + i % 2) for i, text in enumerate(found))
    return "".join(lines).encode()


def table(found: list[str | None]) -> pa.Table:
    """A table with the texts, and something else."""
    return pa.table({"id": list(range(len(found))), "text": found})


def write_all(folder: Path) -> str:
    """Writes a file of every kind; returns the glob that names them all."""
    (folder / "a.jsonl").write_bytes(json_lines(texts(90, "a")))
    (folder / "b.txt").write_bytes("".join(texts(70, "b")).encode())
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(json_lines(texts(60, "c"))))
    (folder / "d.txt.xz").write_bytes(lzma.compress("".join(texts(50, "d")).encode()))
    (folder / "e.jsonl.zst").write_bytes(zstd(json_lines(texts(80, "e"))))
    found: list[Any] = texts(100, "f")
    pq.write_table(table(found), folder / "f.parquet", row_group_size=7)
    (folder / "g.txt").write_bytes(b"")
    return f"{folder}/*.*"


@dataclass(frozen=True)
class Contents:
    """What is the same of two corpora with equal tokens."""

    fingerprint: str
    train: bytes
    heldout: bytes
    summary: dict[str, Any]


def contents(corpus: Corpus) -> Contents:
    """Of a corpus; where it was read is no part."""
    names = ("source", "files", "heldout_files")
    summary = {name: value for name, value in corpus.summary.items() if name not in names}
    splits = (corpus.train.tokens.tobytes(), corpus.heldout.tokens.tobytes())
    return Contents(corpus.fingerprint, *splits, summary)
