"""The raw documents of files, and where each stands; decoding comes later, for every source alike.

A file is read as rows, which are counted from 0: the lines of .jsonl, the pieces that a .txt is cut
into, the records of .parquet and .arrow. A range of them can be read by itself.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from polycom_jax._errors import InputError, require
from polycom_jax.data import columns
from polycom_jax.data.compressed import Damaged, damage, open_text
from polycom_jax.data.files import printable, text_kind
from polycom_jax.data.rows import Reading, Row, damaged_row


def file_rows(
    path: Path, reading: Reading, first: int = 0, last: int | None = None
) -> Iterator[Row]:
    """The documents in rows `first` to `last` (not included; None: to the end) of a file, in order.

    A .jsonl file has one a line (blank lines are passed over), the string in `text_field`; a .txt
    file is one, or several cut at line ends once `document_bytes` are reached. A line longer than
    that is cut too, between two UTF-8 characters, so a document has fewer than twice as many bytes
    (and three, where a character would be cut). A byte-order mark at a file's start is dropped.

    Damaged are a file that cannot be unpacked to its end (its rest is one document), and a row
    without text in `text_field`.

    Raises:
        InputError: a file that cannot be read, or that holds no text in UTF-8 from its first bytes;
            something damaged, unless that is left out.
    """
    try:
        yield from _kind(path).rows(path, reading, first, last)
    except Damaged as error:
        yield damaged_row(f"{path}, from where it is damaged", damage(path, error), reading)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def cuts(path: Path, reading: Reading, most: int) -> list[int]:
    """Rows at which a file can be cut into parts of about `most` bytes, the first at least 1.

    Raises:
        InputError: the file cannot be read.
    """
    found: list[int] = []
    held = 0
    try:
        for row, size in _kind(path).sizes(path, reading):
            held += size
            if held >= most:
                found.append(row)
                held = 0
    except Damaged:
        pass  # whoever reads the last part is told
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return found


def check_files(paths: Iterable[Path], reading: Reading) -> None:
    """Raises `InputError` for a file that cannot be read, or that is no text from its first bytes.

    With `reading.skip_damaged`, one that does not unpack is for `file_rows` to leave out.
    """
    for path in paths:
        try:
            _kind(path).check(path, reading)
        except Damaged as error:
            if not reading.skip_damaged:
                raise damage(path, error) from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_text(path: Path, reading: Reading) -> None:
    with open_text(path):
        pass


def _json_rows(path: Path, reading: Reading, first: int, last: int | None) -> Iterator[Row]:
    with open_text(path) as file:
        for number, line in islice(enumerate(file, start=1), first, last):
            if not line.strip():
                continue
            try:
                text = _text_of(line, f"{path}, line {number}", reading.text_field)
            except InputError as error:
                yield damaged_row(f"{path}, line {number}", error, reading)
            else:
                yield f"{printable(path.name)}, line {number}", text


def _json_sizes(path: Path, reading: Reading) -> Iterator[tuple[int, int]]:
    with open_text(path) as file:
        yield from enumerate(map(len, file), start=1)


def _plain_rows(path: Path, reading: Reading, first: int, last: int | None) -> Iterator[Row]:
    with open_text(path) as file:
        yield from islice(_plain_documents(path, file, reading.document_bytes), first, last)


def _plain_sizes(path: Path, reading: Reading) -> Iterator[tuple[int, int]]:
    with open_text(path) as file:
        found = _plain_documents(path, file, reading.document_bytes)
        yield from enumerate((len(raw) for _, raw in found), start=1)


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


class _Kind(NamedTuple):
    """How files of one kind are read.

    Attributes:
        rows: the documents of a range of rows.
        sizes: at some rows, how many bytes come between the one before and it.
        check: raises for a file that is not what its name says, from its beginning.
    """

    rows: Callable[[Path, Reading, int, int | None], Iterator[Row]]
    sizes: Callable[[Path, Reading], Iterator[tuple[int, int]]]
    check: Callable[[Path, Reading], None]


_KINDS = {
    ".jsonl": _Kind(_json_rows, _json_sizes, _check_text),
    ".txt": _Kind(_plain_rows, _plain_sizes, _check_text),
    ".parquet": _Kind(columns.parquet_rows, columns.parquet_sizes, columns.check_parquet),
    ".arrow": _Kind(columns.arrow_rows, columns.arrow_sizes, columns.check_arrow),
}


def _kind(path: Path) -> _Kind:
    return _KINDS[str(text_kind(path))]
