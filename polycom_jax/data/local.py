"""Corpora of this machine as sources: the standard library, and files of text."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polycom_jax._errors import require
from polycom_jax.data import documents, files, heldout
from polycom_jax.data.cache import Report, digest, locked
from polycom_jax.data.config import DataConfig
from polycom_jax.data.reader import ChangedError, Origin, Reader, Side, Source
from polycom_jax.data.records import TfdsSplits
from polycom_jax.data.rows import Reading, Row
from polycom_jax.data.stdlib import stdlib_documents, stdlib_name

STREAMS = "every stream"
"""How an .xz file is read; names what differs from data that were prepared otherwise."""

LISTED_FILES = 100
"""How many local files a run's record lists at most."""


@dataclass(frozen=True)
class TextFiles:
    """Reads files of text; see `Reader`.

    Attributes:
        paths: the files.
        stamps: the size and the time of last change (ns) that each had when it was looked at.
        sides: where the documents of each go.
        reading: how they are read.
        name: of the source, for messages.
    """

    paths: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    sides: tuple[Side, ...]
    reading: Reading
    name: str

    @property
    def origins(self) -> Sequence[Origin]:
        """The files."""
        each = zip(self.paths, self.stamps, self.sides, strict=True)
        return [Origin(files.printable(path), size, side) for path, (size, _), side in each]

    def rows(self, origin: int, first: int = 0, last: int | None = None) -> Iterator[Row]:
        """See `Reader`."""
        path = Path(self.paths[origin])
        self._check(origin)
        yield from documents.file_rows(path, self.reading, first, last)
        self._check(origin)

    def cuts(self, origin: int, most: int) -> list[int]:
        """See `Reader`."""
        return documents.cuts(Path(self.paths[origin]), self.reading, most)

    def _check(self, origin: int) -> None:
        if files.stamp(Path(self.paths[origin])) != self.stamps[origin]:
            raise ChangedError.of(self.name)


def stdlib(cfg: DataConfig, cache: Path, report: Report) -> Source:
    """Source text of the running Python's standard library."""
    version = stdlib_name()

    def now() -> str:
        contents = [(name, heldout.content_hash(raw)) for name, raw in stdlib_documents()]
        return digest("stdlib", version, heldout.HELDOUT_SHARE, contents)

    fingerprint = now()
    name = f"the standard library of {version}"

    def open_() -> Reader:
        import tensorflow_datasets as tfds

        from polycom_jax.data import builders

        lock = cache / "tfds" / f"{fingerprint}.lock"
        with locked(lock, timeout_s=cfg.lock_timeout_s, report=report), builders.quiet():
            config = tfds.core.BuilderConfig(name=f"{version}-{fingerprint[:16]}", description=name)
            builder = builders.Stdlib(config=config, data_dir=cache / "tfds")
            if not builder.is_prepared():
                report(f"Writing {name} as ArrayRecord")
                builder.download_and_prepare(file_format="array_record")
                if now() != fingerprint:
                    shutil.rmtree(builder.data_dir)
                    raise ChangedError.of(name)
        found = TfdsSplits(
            str(builder.data_dir),
            ((builders.ALL, "by hash"),),
            "text",
            place_field="path",
            skip_damaged=cfg.damaged == "skip",
        )
        found.check(name)
        return found

    return Source(name, fingerprint, open_)


def text(cfg: DataConfig) -> Source:
    """Files of text, by path or glob."""
    names = files.matched_files(cfg.source)
    paths = files.one_each(names)
    apart = files.text_files(cfg.heldout, "data.heldout") if cfg.heldout else ()
    reading = Reading(cfg.text_field, _document_bytes(cfg, paths), cfg.damaged == "skip")
    documents.check_files((*paths, *apart), reading)
    stamps = tuple(map(files.stamp, (*paths, *apart)))
    options = {
        "text_field": cfg.text_field,
        "document_bytes": reading.document_bytes,
        "damaged": cfg.damaged,
    }

    def now() -> tuple[str, list[dict[str, str]]]:
        sums = [{path: files.file_digest(path) for path in side} for side in (paths, apart)]
        contents = [[_content(path, side[path]) for path in side] for side in sums]
        listed = [{files.printable(path): side[path][:16] for path in side} for side in sums]
        return digest("text", heldout.HELDOUT_SHARE, options, contents), listed

    fingerprint, (own, other) = now()
    if cfg.heldout != cfg.source:
        _check_apart(own, other)
    side: Side = "train" if apart else "by hash"
    reader = TextFiles(
        tuple(str(path.absolute()) for path in (*paths, *apart)),
        stamps,
        (*[side] * len(paths), *["heldout"] * len(apart)),  # pyright: ignore[reportArgumentType]
        reading,
        cfg.source,
    )
    few = len(own) + len(other) <= LISTED_FILES
    streams = any(path.suffix.lower() == ".xz" for path in (*paths, *apart))
    return Source(
        cfg.source,
        fingerprint,
        lambda: reader,
        lambda: now()[0] == fingerprint,
        own if few else {},
        other if few else {},
        {
            "document_bytes": reading.document_bytes,
            **({"xz": STREAMS} if streams else {}),
            **({"other_names": len(names) - len(paths)} if len(names) > len(paths) else {}),
        },
        cfg.heldout or "",
    )


def file_sums(pattern: str) -> dict[str, str]:
    """What `Source.files` says of the files of a path or glob, however many they are."""
    paths = files.text_files(pattern)
    return {files.printable(path): files.file_digest(path)[:16] for path in paths}


def _content(path: Path, digest: str) -> tuple[str | None, ...]:
    """What the documents of a file depend on."""
    streams = (STREAMS,) if path.suffix.lower() == ".xz" else ()
    return (files.text_kind(path), digest, *streams)


def _document_bytes(cfg: DataConfig, paths: Sequence[Path]) -> int:
    """The size that the plain ones of the files are cut at."""
    default = DataConfig.document_bytes
    if cfg.heldout:
        return cfg.document_bytes
    plain = (path.stat().st_size for path in paths if files.text_kind(path) == ".txt")
    return heldout.document_bytes(cfg.document_bytes, default, plain)


def _check_apart(own: Mapping[str, str], other: Mapping[str, str]) -> None:
    trained = {content: name for name, content in own.items() if content != files.EMPTY}
    for name, content in other.items():
        require(
            content not in trained,
            f"data.heldout: {name} is in data.source too (as {trained.get(content)}), so that it"
            " would be trained on; take it out of one of the two.",
        )
