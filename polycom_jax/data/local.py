"""Corpora of this machine as sources: the standard library, and text files."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycom_jax._errors import InputError, require
from polycom_jax.data import documents
from polycom_jax.data.cache import Report, digest, locked
from polycom_jax.data.config import DataConfig
from polycom_jax.data.records import Documents, Records

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

PIECES, SMALLEST_PIECE = 128, 1024
"""Little plain text is cut into about so many pieces, or pieces of so many bytes: of a few large
ones, one is a large part of the text to hold out."""

STREAMS = "every stream"
"""How an .xz file is read; names what differs from data that were prepared otherwise."""

LISTED_FILES = 100
"""How many local files a run's record lists at most."""

EMPTY = hashlib.sha256(b"").hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    Attributes:
        name: for people.
        fingerprint: equal where the documents and their splits are equal; known before anything is
            written, so that what is prepared already need not be read again.
        open: prepares if need be; returns the train and the held-out documents.
        files: local files to train on by name, and the beginning of their SHA-256: by these people
            find what has changed. Of more than `LISTED_FILES`, none.
        heldout_files: the same of files that are held out by name.
        treated: how they are read, for a run's record.
    """

    name: str
    fingerprint: str
    open: Callable[[], tuple[Documents, Documents]]
    files: Mapping[str, str] = field(default_factory=dict)
    heldout_files: Mapping[str, str] = field(default_factory=dict)
    treated: Mapping[str, Any] = field(default_factory=dict)


def stdlib(cfg: DataConfig, cache: Path, report: Report) -> Source:
    """Source text of the running Python's standard library."""
    version = documents.stdlib_name()

    def now() -> str:
        found = documents.stdlib_documents()
        contents = [(name, documents.content_hash(raw)) for name, raw in found]
        return digest("stdlib", version, documents.HELDOUT_SHARE, contents)

    fingerprint = now()

    def make() -> "tfds.core.DatasetBuilder":
        import tensorflow_datasets as tfds

        from polycom_jax.data import builders

        config = tfds.core.BuilderConfig(name=f"{version}-{fingerprint[:16]}", description=name)
        return builders.Stdlib(config=config, data_dir=cache / "tfds")

    name = f"the standard library of {version}"
    return Source(
        name, fingerprint, lambda: _prepared(make, now, fingerprint, name, cfg, cache, report)
    )


def text(cfg: DataConfig, cache: Path, report: Report) -> Source:
    """Text files, by path or glob."""
    names = documents.matched_files(cfg.source)
    paths = documents.one_each(names)
    apart = documents.text_files(cfg.heldout, "data.heldout") if cfg.heldout else ()
    documents.check_files((*paths, *apart), damaged=cfg.damaged)
    options: dict[str, Any] = {
        "text_field": cfg.text_field,
        "document_bytes": _piece_bytes(cfg, paths),
        "damaged": cfg.damaged,
    }

    def now() -> tuple[str, list[dict[str, str]]]:
        sums = [{path: documents.file_digest(path) for path in side} for side in (paths, apart)]
        contents = [[_content(path, side[path]) for path in side] for side in sums]
        listed = [{documents.printable(path): side[path][:16] for path in side} for side in sums]
        return digest("text", documents.HELDOUT_SHARE, options, contents), listed

    fingerprint, (files, heldout_files) = now()
    if cfg.heldout != cfg.source:
        _check_apart(files, heldout_files)

    def make() -> "tfds.core.DatasetBuilder":
        from polycom_jax.data import builders

        config = builders.TextConfig(
            name=fingerprint,
            description=cfg.source,
            files=tuple(str(path.absolute()) for path in paths),
            heldout_files=tuple(str(path.absolute()) for path in apart),
            heldout=cfg.heldout or "",
            **options,
        )
        return builders.Text(config=config, data_dir=cache / "tfds")

    few = len(files) + len(heldout_files) <= LISTED_FILES
    packed = any(path.suffix.lower() == ".xz" for path in (*paths, *apart))
    return Source(
        cfg.source,
        fingerprint,
        lambda: _prepared(make, lambda: now()[0], fingerprint, cfg.source, cfg, cache, report),
        files if few else {},
        heldout_files if few else {},
        {
            "document_bytes": options["document_bytes"],
            **({"xz": STREAMS} if packed else {}),
            **({"other_names": len(names) - len(paths)} if len(names) > len(paths) else {}),
        },
    )


def file_sums(pattern: str) -> dict[str, str]:
    """What `Source.files` says of the files of a path or glob, however many they are."""
    paths = documents.text_files(pattern)
    return {documents.printable(path): documents.file_digest(path)[:16] for path in paths}


def _content(path: Path, digest: str) -> tuple[str | None, ...]:
    """What the documents of a file depend on."""
    streams = (STREAMS,) if path.suffix.lower() == ".xz" else ()
    return (documents.text_kind(path), digest, *streams)


def _piece_bytes(cfg: DataConfig, paths: Iterable[Path]) -> int:
    """`cfg.document_bytes`; of the default, less where few pieces would come of it."""
    plain = [path.stat().st_size for path in paths if documents.text_kind(path) == ".txt"]
    default = DataConfig.document_bytes
    if cfg.heldout or not plain or cfg.document_bytes != default:
        return cfg.document_bytes
    return min(default, max(SMALLEST_PIECE, sum(plain) // PIECES))


def _check_apart(files: Mapping[str, str], heldout: Mapping[str, str]) -> None:
    trained = {content: name for name, content in files.items() if content != EMPTY}
    for name, content in heldout.items():
        require(
            content not in trained,
            f"data.heldout: {name} is in data.source too (as {trained.get(content)}), so that it"
            " would be trained on; take it out of one of the two.",
        )


def _prepared(
    make: Callable[[], "tfds.core.DatasetBuilder"],
    now: Callable[[], str],
    fingerprint: str,
    name: str,
    cfg: DataConfig,
    cache: Path,
    report: Report,
) -> tuple[Documents, Documents]:
    from polycom_jax.data import builders

    lock = cache / "tfds" / f"{fingerprint}.lock"
    with locked(lock, timeout_s=cfg.lock_timeout_s, report=report), builders.quiet():
        builder = make()
        if not builder.is_prepared():
            report(f"Writing {name} as ArrayRecord")
            builder.download_and_prepare(file_format="array_record")
            if now() != fingerprint:  # It is read several times while it is prepared.
                shutil.rmtree(builder.data_dir)
                raise InputError(
                    f"{name} was changed while it was prepared; start again when nothing writes to"
                    " it any more."
                )
        left_out: Any = builder.info.metadata or {}
        train, heldout = (
            Documents(
                read_split(builder, split),
                "text",
                folder=str(builder.data_dir),
                place_field="path",
                skip_damaged=cfg.damaged == "skip",
                left_out=left_out.get(split, 0),
            )
            for split in ("train", "heldout")
        )
    return train, heldout


def read_split(builder: "tfds.core.DatasetBuilder", split: str) -> Records:
    """The records of a split, with random access."""
    read: Any = builder.as_data_source  # A decorator hides its signature.
    return read(split)
