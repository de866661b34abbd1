"""Corpora of this machine as sources: the standard library, and files of text."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.data import digests, documents, files, heldout, hf_folder
from polycom_jax.data.cache import Report, digest, locked
from polycom_jax.data.config import DataConfig
from polycom_jax.data.reader import ChangedError, Origin, Reader, Side, Source, Taken
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
        contents: see `Origin.content`.
        reading: how they are read.
        name: of the source, for messages.
    """

    paths: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    sides: tuple[Side, ...]
    contents: tuple[str, ...]
    reading: Reading
    name: str

    @property
    def origins(self) -> Sequence[Origin]:
        """The files."""
        each = zip(self.paths, self.stamps, self.sides, self.contents, strict=True)
        return [
            Origin(
                files.printable(path),
                size,
                side,
                files.text_kind(path) in files.PACKABLE,
                content,
            )
            for path, (size, _), side, content in each
        ]

    def rows(self, origin: int, first: int = 0, last: int | None = None) -> Iterator[Row]:
        """See `Reader`."""
        path = self._place(origin)
        self._check(origin)
        yield from documents.file_rows(path, self.reading, first, last)
        self._check(origin)

    def cuts(self, origin: int, most: int) -> list[int]:
        """See `Reader`."""
        return documents.cuts(self._place(origin), self.reading, most)

    def _place(self, origin: int) -> files.Place:
        path = self.paths[origin]
        return storage.place(path) if storage.is_remote(path) else Path(path)

    def _check(self, origin: int) -> None:
        """Of what lies in a bucket, its listing tells when all is read."""
        path = self._place(origin)
        if not storage.is_remote(path):
            (now,) = files.looked_at([path])
            if (now.size, now.generation) != self.stamps[origin]:
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


def text(cfg: DataConfig, cache: Path) -> Source:
    """Files of text, by path or glob, or the folder of a Hugging Face dataset."""
    names = source_files(cfg.text, cfg.train_split)
    paths, apart = files.one_each(names), heldout_files(cfg)
    reading = Reading(cfg.text_field, _document_bytes(cfg, paths, apart), cfg.damaged == "skip")
    found = _Files(cfg, cache, paths, apart, reading)
    here = [path for path in found.every if not storage.is_remote(path)]
    documents.check_files(here, reading)
    entries = files.looked_at(found.every)
    sums = found.sums(entries)
    fingerprint = found.fingerprint(sums)
    own, other = found.listed(sums)
    if cfg.heldout != cfg.text:
        _check_apart(own, other)
    few = len(found.every) <= LISTED_FILES
    reader = found.reader(entries, sums)
    return Source(
        cfg.text,
        fingerprint,
        lambda: reader,
        lambda: found.fingerprint(found.sums(files.looked_at(found.every))) == fingerprint,
        own if few else {},
        other if few else {},
        found.treated(len(names)),
        found.taken(entries, sums),
        cfg.heldout or "",
        lambda: found.fingerprint(found.sums(entries, "sha256")),
    )


@dataclass(frozen=True)
class _Files:
    """The files of a source: those to train on, and those `apart` that are held out."""

    cfg: DataConfig
    cache: Path
    paths: tuple[files.Place, ...]
    apart: tuple[files.Place, ...]
    reading: Reading

    @property
    def every(self) -> tuple[files.Place, ...]:
        return (*self.paths, *self.apart)

    def sums(self, entries: Sequence[storage.Entry], kind: digests.Kind = "crc32c") -> list[str]:
        """The checksum of each file as it is now."""
        return digests.file_digests(self.every, entries, self.cache, kind)

    def fingerprint(self, sums: Sequence[str]) -> str:
        """Of files with these checksums."""
        contents = self._contents(sums)
        sides = [contents[: len(self.paths)], contents[len(self.paths) :]]
        return digest("text", heldout.HELDOUT_SHARE, self._options, sides)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "text_field": self.cfg.text_field,
            "document_bytes": self.reading.document_bytes,
            "damaged": self.cfg.damaged,
        }

    def _contents(self, sums: Sequence[str]) -> list[tuple[str | None, ...]]:
        return [_content(path, one) for path, one in zip(self.every, sums, strict=True)]

    def listed(self, sums: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The names, and the beginning of each checksum, of both sides."""
        pairs = zip(self.every, sums, strict=True)
        listed = [(files.printable(path), digests.shown(one)) for path, one in pairs]
        return dict(listed[: len(self.paths)]), dict(listed[len(self.paths) :])

    def reader(self, entries: Sequence[storage.Entry], sums: Sequence[str]) -> TextFiles:
        """What reads the files as they were looked at, with these checksums."""
        return TextFiles(
            tuple(os.fspath(p if storage.is_remote(p) else p.absolute()) for p in self.every),
            tuple((entry.size, entry.generation) for entry in entries),
            self._sides,
            tuple(digest(self._options, content) for content in self._contents(sums)),
            self.reading,
            self.cfg.text,
        )

    @property
    def _sides(self) -> tuple[Side, ...]:
        own: Side = "train" if self.apart else "by hash"
        other: Side = "heldout"
        return (*(own for _ in self.paths), *(other for _ in self.apart))

    def taken(self, entries: Sequence[storage.Entry], sums: Sequence[str]) -> dict[str, Taken]:
        """How each is, by its checksum; those without content not."""
        each = zip(self.every, self._sides, entries, sums, strict=True)
        return {
            one: Taken(files.printable(path), side, *self._cut(path, entry.size))
            for path, side, entry, one in each
            if digests.shown(one) not in digests.EMPTY
        }

    def _cut(self, path: files.Place, size: int) -> tuple[int, int]:
        """The last two fields of `Taken`."""
        packed = path.suffix.lower() in files.PACKED
        plain = files.text_kind(path) == ".txt"
        return (self.reading.document_bytes * plain, 0 if packed else size)

    def treated(self, names: int) -> dict[str, object]:
        """How they are read, for a run's record; they have so many names."""
        told: dict[str, object] = {"document_bytes": self.reading.document_bytes}
        if any(path.suffix.lower() == ".xz" for path in self.every):
            told["xz"] = STREAMS
        if names > len(self.paths):
            told["other_names"] = names - len(self.paths)
        return told


def source_files(
    pattern: str, split: str = DataConfig.train_split, field: str = "data.source"
) -> tuple[files.Place, ...]:
    """The files that a source names; of a Hugging Face dataset, those of a split.

    Raises:
        InputError: see `files.matched_files`; or there is no such split.
    """
    folder = _folder(pattern)
    if hf_folder.splits(folder):
        return tuple(hf_folder.split_files(folder, split))
    return files.matched_files(pattern, field)


def heldout_files(cfg: DataConfig) -> tuple[files.Place, ...]:
    """The files to evaluate on; none: a share of the documents is."""
    own = hf_folder.splits(_folder(cfg.text))
    named = hf_folder.own_name(own, cfg.heldout or "")
    if named in own:
        return tuple(own[named])
    if own and cfg.heldout == cfg.text:  # all of the text is all of its splits
        return files.one_each(path for split in own.values() for path in split)
    if cfg.heldout:
        return files.one_each(_other_files(cfg, cfg.heldout, own))
    trained = hf_folder.own_name(own, cfg.train_split)
    apart = (split for split in heldout.HELDOUT_SPLITS if split in own)
    return tuple(next((own[split] for split in apart if split != trained), ()))


def _other_files(
    cfg: DataConfig, pattern: str, splits: Mapping[str, list[files.Place]]
) -> tuple[files.Place, ...]:
    """The files to evaluate on, where the source has no split of that name."""
    try:
        return source_files(pattern, cfg.train_split, "data.heldout")
    except InputError as error:
        if not splits:
            raise
        raise InputError(
            f"{error} Nor is it a split of {cfg.text}, which has: {', '.join(sorted(splits))}."
        ) from error


def _folder(pattern: str) -> files.Place:
    return storage.place(pattern) if "://" in pattern else Path(pattern).expanduser()


def file_sums(pattern: str, kind: digests.Kind = "crc32c") -> dict[str, str]:
    """What `Source.files` says of the files of a path or glob, however many they are."""
    paths = files.one_each(source_files(pattern))
    sums = digests.file_digests(paths, files.looked_at(paths), kind=kind)
    return {
        files.printable(path): digests.shown(one) for path, one in zip(paths, sums, strict=True)
    }


def _content(path: files.Place, digest: str) -> tuple[str | None, ...]:
    """What the documents of a file depend on."""
    streams = (STREAMS,) if path.suffix.lower() == ".xz" else ()
    return (files.text_kind(path), digest, *streams)


def _document_bytes(
    cfg: DataConfig, paths: Sequence[files.Place], apart: Sequence[files.Place]
) -> int:
    """The size that the plain ones of the files are cut at."""
    plain = [path for path in paths if files.text_kind(path) == ".txt"]
    sizes = [] if apart else [entry.size for entry in files.looked_at(plain)]
    return heldout.document_bytes(cfg.document_bytes, DataConfig.document_bytes, sizes)


def _check_apart(own: Mapping[str, str], other: Mapping[str, str]) -> None:
    trained = {content: name for name, content in own.items() if content not in digests.EMPTY}
    for name, content in other.items():
        require(
            content not in trained,
            f"data.heldout: {name} is in data.source too (as {trained.get(content)}), so that it"
            " would be trained on; take it out of one of the two.",
        )
