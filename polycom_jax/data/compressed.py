"""Text files as bytes: decompressed to the end, and refused where they hold no text in UTF-8."""

import contextlib
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from polycom_jax._errors import InputError, require

_READ = 1 << 16
_BOM = b"\xef\xbb\xbf"

_MOST_NULLS = 0.1
"""Share of NUL bytes above which a file is no text: UTF-16 without its mark has a half."""

_UTF = "convert it with `iconv -f {0} -t UTF-8`"
_UNPACK = "unpack it, or name it by what it is"
_MARKS = (
    (b"\xff\xfe\0\0", "text in UTF-32", _UTF.format("UTF-32")),
    (b"\0\0\xfe\xff", "text in UTF-32", _UTF.format("UTF-32")),
    (b"\xff\xfe", "text in UTF-16", _UTF.format("UTF-16")),
    (b"\xfe\xff", "text in UTF-16", _UTF.format("UTF-16")),
    (b"\x1f\x8b", "packed data (gzip)", _UNPACK),
    (b"\xfd7zXZ\0", "packed data (xz)", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed data (zstd)", _UNPACK),
    (b"PK\x03\x04", "packed data (zip)", _UNPACK),
)
"""How files begin that are taken for text by their name alone, what they are, and what to do."""


class Damaged(Exception):
    """A packed file is not what its format says, or ends too early."""


@contextlib.contextmanager
def arrow_damage() -> Iterator[None]:
    """In the block, what Arrow says of a damaged file is `Damaged`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, not of the format
        raise Damaged(" ".join(str(error).split())) from error


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """The contents of a text file, unpacked by its suffix, without a byte-order mark.

    What `gzip -t`, `xz -t` or `zstd -t` would not pass is told while it is read, by `Damaged`.

    Raises:
        Damaged: a packed file that does not even begin as one.
        InputError: it holds something else than text in UTF-8.
        OSError: it cannot be read.
    """
    unpack = {".gz": _gunzip, ".xz": _unxz, ".zst": _unzstd}.get(path.suffix.lower())
    with path.open("rb") as raw:
        pieces: Any = raw if unpack is None else _Pieces(unpack(raw))
        file = pieces if hasattr(pieces, "peek") else io.BufferedReader(pieces, _READ)
        beginning = file.peek(_READ)
        _check_text(path, beginning)
        if beginning.startswith(_BOM):
            file.read(len(_BOM))
        yield file


def _check_text(path: Path, beginning: bytes) -> None:
    for mark, what, remedy in _MARKS:
        require(
            not beginning.startswith(mark), f"{path} holds {what}, not text in UTF-8; {remedy}."
        )
    nulls = beginning.count(0)
    require(
        nulls <= _MOST_NULLS * len(beginning),
        f"{path} holds no text in UTF-8: {nulls / max(1, len(beginning)):.0%} of its first bytes"
        f" are zero, as in UTF-16 ({_UTF.format('UTF-16LE')}) and in files of other programs.",
    )


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held = piece
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """All members; zlib checks their headers, which Python's own reader does not do wholly."""
    given = file.read(_READ)
    while True:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not member.eof:
            if not given:
                raise Damaged("it ends too early")
            try:
                yield member.decompress(given, _READ)
            except zlib.error as error:
                raise Damaged(str(error)) from error
            given = member.unused_data if member.eof else member.unconsumed_tail
            given = given or file.read(_READ)
        padding, given = _behind_zeros(file, given)
        if padding and given:
            raise Damaged("something stands behind the zeros at its end")
        if not given:
            return


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    """All streams; Python's own reader takes whatever follows the first one's padding for no more.

    Padding is of four zero bytes or a multiple, between streams and at the end (.xz file format,
    section 2.2).
    """
    given = file.read(_READ)
    while True:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        while not stream.eof:
            if not given and stream.needs_input:
                raise Damaged("it ends too early")
            try:
                yield stream.decompress(given, _READ)
            except lzma.LZMAError as error:
                raise Damaged(str(error)) from error
            if stream.eof:
                given = stream.unused_data
            else:
                given = file.read(_READ) if stream.needs_input else b""
        padding, given = _behind_zeros(file, given)
        if padding % 4:
            raise Damaged(f"{padding} bytes of padding, which come by fours")
        if not given:
            return


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """All frames, each with its checksum; nothing may stand behind them."""
    import pyarrow as pa

    source: Any = pa.PythonFile(file, "r")
    stream = pa.CompressedInputStream(source, "zstd")
    some = False
    with arrow_damage():
        while got := stream.read(_READ):
            some = True
            yield got
    if not some and not file.tell():
        raise Damaged("it is empty")


def _behind_zeros(file: BinaryIO, given: bytes) -> tuple[int, bytes]:
    """How many zero bytes come next, and what has been read behind them; nothing: the end."""
    zeros = 0
    while given := given or file.read(_READ):
        rest = given.lstrip(b"\0")
        zeros += len(given) - len(rest)
        if rest:
            return zeros, rest
        given = b""
    return zeros, b""


def damage(path: Path, error: Damaged) -> InputError:
    """What to say of a damaged file."""
    found = InputError(f"{path} is damaged or cut short ({error}); fetch or compress it again.")
    found.__cause__ = error
    return found
