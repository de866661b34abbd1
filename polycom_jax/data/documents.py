"""The raw documents of local corpora, and which of them are held out.

A document is a name and its bytes, exactly as they stand in the file; decoding comes later, in one
place for every source (`store.py`).
"""

import codecs
import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import stat
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from polycom_jax._errors import InputError, require
from polycom_jax.data.packed import Damaged, damage, open_text

HELDOUT_SHARE = 0.03
"""Share of the documents that is held out, by hash of their content: copies stay on one side."""

PRUNED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "__pycache__"}
    | {"encodings"}
)
"""Folders of the standard library that are no part of the corpus: what others installed, tests,
and `encodings`, an eighth of the bytes, generated tables of code points: nothing to learn from."""

PACKED = (".gz", ".xz")
KINDS = (".txt", ".jsonl")


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
    path = Path(os.fspath(path).lower())
    suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return suffix if suffix in KINDS else None


def printable(path: str | Path) -> str:
    """A path as text: bytes of a name that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def text_files(pattern: str, field: str = "data.source") -> tuple[Path, ...]:
    """The files that a path or glob (`**` too) names, sorted; messages say which `field` it was.

    Of several names of one file, by links, the first is taken; folders that a glob matches are
    passed over.

    Raises:
        InputError: no such file, a link to none, something that is no file, or a file that is
            neither .txt nor .jsonl.
    """
    return one_each(matched_files(pattern, field))


def matched_files(pattern: str, field: str = "data.source") -> tuple[Path, ...]:
    """As `text_files`, with all names of a file."""
    expanded = os.path.expanduser(pattern)
    exact = os.path.lexists(expanded)
    names = [expanded] if exact else glob.glob(expanded, recursive=True)
    require(
        not os.path.isdir(expanded),
        f"{field}={pattern!r} is a folder; name files, with a glob for instance:"
        f" '{pattern.rstrip('/')}/**/*.txt'.",
    )
    paths = tuple(path for path in map(Path, sorted(names)) if _is_file(path))
    hint = " In a glob '[' begins a set of signs; a bracket itself is written '[[]'."
    require(
        bool(paths),
        f"{field}={pattern!r}: no such file, and no file matches it as a glob."
        + (hint if "[" in pattern else ""),
    )
    for path in paths:
        require(
            text_kind(path) is not None,
            f"{path} is neither .txt nor .jsonl (nor one of these with .gz or .xz); rename it to"
            " what it holds: plain text, or one JSON object a line.",
        )
    return paths


def _is_file(path: Path) -> bool:
    """False for a folder; `InputError` for what is neither."""
    try:  # `**` goes round a folder's link to one above it until the system sees too many links.
        mode = os.stat(os.path.join(os.path.realpath(path.parent), path.name)).st_mode
    except OSError as error:
        broken = path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
        why = f"links to {os.readlink(path)}, which is not there" if broken else "cannot be read"
        raise InputError(
            f"{path} {why} ({error.strerror}); mend it, or take it away from the text."
        ) from error
    require(
        stat.S_ISREG(mode) or stat.S_ISDIR(mode),
        f"{path} is a pipe or a device, and text is read more than once; write it to a file.",
    )
    return stat.S_ISREG(mode)


def one_each(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The first name of each file."""
    found: dict[Any, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        about = os.stat(real)
        found.setdefault((about.st_dev, about.st_ino) if about.st_nlink > 1 else real, path)
    return tuple(found.values())


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
        InputError: a file that cannot be read, or that holds no text in UTF-8 from its first bytes.
    """
    for path in paths:
        with _told(path, skip), open_text(path) as file:
            if text_kind(path) == ".jsonl":
                yield from _json_documents(path, file, text_field, skip)
            else:
                yield from _plain_documents(path, file, document_bytes)


def check_files(paths: Iterable[Path], *, damaged: str) -> None:
    """Raises `InputError` for a file that cannot be read, or that is no text from its first bytes.

    With `damaged` "skip", a packed file that does not unpack is for `text_documents` to leave out.
    """
    skip = refuse if damaged == "error" else lambda where, error: None
    for path in paths:
        with _told(path, skip), open_text(path):
            pass


@contextlib.contextmanager
def _told(path: Path, skip: Skip) -> Iterator[None]:
    """In the block, errors of the file as ours."""
    try:
        yield
    except Damaged as error:
        skip(f"{path}, from where it is damaged", damage(path, error))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


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
            yield f"{printable(path.name)}, line {number}", text


def _text_of(line: bytes, where: str, text_field: str) -> bytes:
    """The text of a JSON line as UTF-8; its lone surrogates and other bytes stay undecodable."""
    try:
        words, errors = line.decode("utf-8"), "surrogatepass"
    except UnicodeDecodeError:  # Carried through the JSON parser unchanged.
        words, errors = line.decode("utf-8", "surrogateescape"), "surrogateescape"
    try:
        record = json.loads(words, object_pairs_hook=_without_doubles)
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
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError:  # A surrogate that is no escaped byte, beside bytes that are.
        return text.encode("utf-8", "surrogatepass")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; `ValueError` for a name that stands there twice: which one is meant?"""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the field {twice!r} twice")
    return record


def _plain_documents(
    path: Path, file: BinaryIO, document_bytes: int
) -> Iterator[tuple[str, bytes]]:
    start, size, held = 0, 0, []
    for piece in _pieces(file, document_bytes):
        held.append(piece)
        size += len(piece)
        if size >= document_bytes:
            yield f"{printable(path.name)}, from byte {start}", b"".join(held)
            start, size, held = start + size, 0, []
    if held:
        yield f"{printable(path.name)}, from byte {start}", b"".join(held)


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
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
