"""The raw documents of local corpora, and which of them are held out.

A document is a name and its bytes, exactly as they stand in the file; decoding comes later, in one
place for every source (`store.py`).
"""

import codecs
import glob
import gzip
import hashlib
import json
import lzma
import os
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from polycom_jax._errors import InputError, require

HELDOUT_SHARE = 0.03
"""Share of the documents that is held out, by hash of their content: copies stay on one side."""

PRUNED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "__pycache__"}
    | {"encodings"}
)
"""Folders of the standard library that are no part of the corpus: what others installed, tests,
and `encodings`, an eighth of the bytes, generated tables of code points: nothing to learn from."""

_PACKED = (".gz", ".xz")
_KINDS = (".txt", ".jsonl")
_BOM = b"\xef\xbb\xbf"
_File = BinaryIO | gzip.GzipFile | lzma.LZMAFile


def stdlib_name() -> str:
    """The name of the running Python's standard library: implementation and version."""
    return f"{platform.python_implementation().lower()}-{platform.python_version()}"


def stdlib_documents() -> Iterator[tuple[str, bytes]]:
    """The .py files of the running Python's standard library, sorted by path.

    `PRUNED_FOLDERS` are not entered (pruned inside the walk: site-packages may be huge), nor are
    `config-*` folders; `_sysconfigdata*` files describe the machine and are left out too.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            f for f in subfolders if f not in PRUNED_FOLDERS and not f.startswith("config-")
        ]
        paths = (Path(folder, f) for f in files if f.endswith(".py"))
        found += [p.relative_to(root).as_posix() for p in paths if "_sysconfigdata" not in p.name]
    require(
        bool(found),
        f"No Python source under {root}: this Python ships its library compiled;"
        " give data.source a text file, a .jsonl file or a TFDS name.",
    )
    for name in sorted(found):
        yield name, (root / name).read_bytes()


def text_kind(path: str | Path) -> str | None:
    """Either ".txt" or ".jsonl", seen through .gz and .xz; None for anything else."""
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix in _PACKED else path.suffix
    return suffix if suffix in _KINDS else None


def text_files(pattern: str, field: str = "data.source") -> tuple[Path, ...]:
    """The files that a path or glob (`**` too) names, sorted; messages say which `field` it was.

    Raises:
        InputError: no such file, or one that is neither .txt nor .jsonl.
    """
    expanded = os.path.expanduser(pattern)
    exact = Path(expanded)
    names = [expanded] if exact.exists() else glob.glob(expanded, recursive=True)
    paths = tuple(Path(n) for n in sorted(names) if os.path.isfile(n))
    require(
        not exact.is_dir(),
        f"{field}={pattern!r} is a folder; name files, with a glob for instance:"
        f" '{pattern.rstrip('/')}/**/*.txt'.",
    )
    require(bool(paths), f"{field}={pattern!r}: no such file, and no file matches it as a glob.")
    for path in paths:
        require(
            text_kind(path) is not None,
            f"{path} is neither .txt nor .jsonl (nor one of these with .gz or .xz); rename it to"
            " what it holds: plain text, or one JSON object a line.",
        )
    return paths


Skip = Callable[[str, InputError], None]
"""Takes where something damaged stands, and what is wrong with it; it may raise that."""


def refuse(where: str, error: InputError) -> None:
    """Nothing damaged is left out."""
    raise error


def text_documents(
    paths: Iterable[Path], *, text_field: str, document_bytes: int, skip: Skip = refuse
) -> Iterator[tuple[str, bytes]]:
    """The documents of text files, in order, and where each stands ("a.jsonl, line 3").

    A .jsonl file has one a line (blank lines are passed over), the string in `text_field`; a .txt
    file is one, or several cut at line ends once `document_bytes` are reached. A line longer than
    that is cut too, between two UTF-8 characters, so a document has fewer than twice as many bytes
    (and three, where a character would be cut). A byte-order mark at a file's start is dropped.

    A file that cannot be unpacked to its end (its rest is one piece), and a line that is no JSON
    object or has no such field, is left out if `skip` returns; it raises the error as it is.

    Raises:
        InputError: a file that cannot be read.
    """
    for path in paths:
        try:
            with _open(path) as file:
                if file.read(len(_BOM)) != _BOM:
                    file.seek(0)
                if text_kind(path) == ".jsonl":
                    yield from _json_documents(path, file, text_field, skip)
                else:
                    yield from _plain_documents(path, file, document_bytes)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            wrong = InputError(
                f"{path} is damaged or cut short ({error}); fetch or compress it again."
            )
            wrong.__cause__ = error
            skip(f"{path}, from where it is damaged", wrong)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _open(path: Path) -> _File:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return lzma.open(path, "rb") if path.suffix == ".xz" else open(path, "rb")


def _json_documents(
    path: Path, lines: Iterable[bytes], text_field: str, skip: Skip
) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = _text_of(line, f"{path}, line {number}", text_field)
        except InputError as error:
            skip(f"{path}, line {number}", error)
        else:
            yield f"{path.name}, line {number}", _encode(text)


def _text_of(line: bytes, where: str, text_field: str) -> str:
    # surrogateescape carries bytes that are not UTF-8 through the JSON parser unchanged.
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}.") from error
    require(
        isinstance(record, dict),
        f"{where} holds a {type(record).__name__}; expected a JSON object.",
    )
    text = record.get(text_field)
    if not isinstance(text, str):
        have = ", ".join(map(repr, record)) or "none"
        got = f"is of type {type(text).__name__}" if text_field in record else "is missing"
        raise InputError(
            f"{where}: field {text_field!r} {got}; expected text. Fields there: {have}. Name the"
            " right one with data.text_field."
        )
    return text


def _encode(text: str) -> bytes:
    """UTF-8, with escaped bytes as they were and other lone surrogates as undecodable bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _plain_documents(path: Path, file: _File, document_bytes: int) -> Iterator[tuple[str, bytes]]:
    start, size, held = 0, 0, []
    for piece in _pieces(file, document_bytes):
        held.append(piece)
        size += len(piece)
        if size >= document_bytes:
            yield f"{path.name}, from byte {start}", b"".join(held)
            start, size, held = start + size, 0, []
    if held:
        yield f"{path.name}, from byte {start}", b"".join(held)


def _pieces(file: _File, size: int) -> Iterator[bytes]:
    """The lines; one longer than `size` in pieces, so that it is never held whole."""
    rest = b""
    while got := file.readline(size):
        piece = rest + got
        end = whole_characters(piece)
        yield piece[:end]
        rest = piece[end:]
    if rest:
        yield rest


def whole_characters(raw: bytes) -> int:
    """The length of `raw` without the UTF-8 character that is only begun at its end, if any."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(raw[-4:])
    return len(raw) - len(decoder.getstate()[0])


def some_text(found: Iterable[tuple[str, bytes]], source: str) -> Iterator[tuple[str, bytes]]:
    """The same documents; at their end `InputError`, naming `source`, if all of them were empty."""
    any_text = False
    for name, raw in found:
        any_text |= bool(raw)
        yield name, raw
    require(any_text, f"{source}: no text in it; the corpus is empty.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file as it lies on disk.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def content_hash(raw: bytes) -> int:
    """64 bits that depend on the content alone.

    They are personalised: a corpus whose publisher held documents out by their plain SHA-256 has
    none left in the lowest share of that hash.
    """
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8, person=b"heldout").digest(), "big")


class SingleDocumentError(InputError):
    """A text of one document: it cannot be split into a part to train on and one held out."""


def heldout_below(hashes: Iterable[int], source: str) -> int:
    """The bound under which a document's `content_hash` holds it out.

    It is `HELDOUT_SHARE` of the range of hashes, moved just so far that both sides have a document;
    empty ones count for neither.

    Raises:
        InputError: no text.
        SingleDocumentError: no two different documents.
    """
    empty = content_hash(b"")
    low, high = 2**64, -1
    for one in hashes:
        if one != empty:
            low, high = min(low, one), max(high, one)
    require(high >= 0, f"{source}: no text in it; the corpus is empty.")
    if low >= high:
        raise SingleDocumentError(
            f"{source}: a single document, so nothing can be held out; give more text, or other"
            " files by data.heldout, or lower data.document_bytes, the size that a .txt file is cut"
            " at (a .jsonl file has one a line)."
        )
    return min(max(int(HELDOUT_SHARE * 2**64), low + 1), high)
