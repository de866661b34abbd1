"""Compressed files are read to their end, or refused: by the rules of `gzip -t` and its like."""

import gzip
import lzma
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from corpora import zstd

from polycom_jax import InputError
from polycom_jax.data import documents, files
from polycom_jax.data.rows import Reading

PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}
PROGRAMS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
TEXT = b"".join(b"line %d of a text\n" % (i * 7919 % 1009) for i in range(2_000))


def read(path: Path) -> bytes:
    rows = documents.file_rows(path, Reading())
    return b"".join(raw for _, raw in rows if raw is not None)


def flipped(raw: bytes, at: int, bit: int = 0) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


@pytest.mark.parametrize(
    ("suffix", "end"),
    [(".zst", b""), *((suffix, bytes(n)) for suffix in (".gz", ".xz") for n in (0, 4, 512))],
)
def test_every_stream_is_read(tmp_path: Path, suffix: str, end: bytes):
    path = tmp_path / f"a.txt{suffix}"
    pack = PACK[suffix]
    path.write_bytes(pack(TEXT) + pack(b"") + pack(b"the end\n") + end)
    assert read(path) == TEXT + b"the end\n"


def test_padding_between_streams_of_xz_ends_nothing(tmp_path: Path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one\n") + bytes(8) + lzma.compress(b"two\n"))
    assert read(path) == b"one\ntwo\n"


@pytest.mark.parametrize("suffix", [".GZ", ".Xz", ".ZST"])
def test_the_case_of_a_suffix_says_nothing(tmp_path: Path, suffix: str):
    path = tmp_path / f"A.TXT{suffix}"
    path.write_bytes(PACK[suffix.lower()](TEXT))
    assert files.matched_files(str(path)) == (path,)
    assert read(path) == TEXT


FLIPS = ("flipped in the first", "flipped in the second", "flipped checksum")
BROKEN = {
    "empty": lambda pack: b"",
    "zeros": lambda pack: bytes(8),
    "cut": lambda pack: pack(TEXT)[:-3],
    "cut in the second": lambda pack: pack(TEXT) + pack(TEXT)[:-3],
    "not packed": lambda pack: TEXT,
    "garbage behind": lambda pack: pack(TEXT) + b"garbage",
    "padding and garbage": lambda pack: pack(TEXT) + bytes(4) + b"garbage",
    "flipped in the first": lambda pack: flipped(pack(TEXT), 400),
    "flipped in the second": lambda pack: pack(TEXT) + flipped(pack(TEXT), 400),
    "flipped checksum": lambda pack: flipped(pack(TEXT), -7 % len(pack(TEXT))),
}


@pytest.mark.parametrize(
    ("suffix", "kind"),
    # Arrow writes frames without a checksum, and one flipped bit may be text like any other.
    [(suffix, kind) for suffix in PACK for kind in BROKEN if suffix != ".zst" or kind not in FLIPS],
)
def test_a_broken_file_is_refused_in_a_line_that_names_it(tmp_path: Path, suffix: str, kind: str):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(BROKEN[kind](PACK[suffix]))
    with pytest.raises(InputError, match="damaged or cut short") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_only_one_of_the_formats_allows_is_refused_in_the_other(tmp_path: Path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(TEXT) + bytes(3))
    with pytest.raises(InputError, match="3 bytes of padding"):
        read(path)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(TEXT) + bytes(4) + gzip.compress(TEXT))
    with pytest.raises(InputError, match="behind the zeros"):
        read(path)
    path.write_bytes(flipped(gzip.compress(TEXT), 3, bit=7))  # a flag that no version has
    with pytest.raises(InputError, match="header flags"):
        read(path)


def zstd_of_the_program(raw: bytes) -> bytes:
    return subprocess.run(["zstd", "-c"], input=raw, capture_output=True, check=True).stdout


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS.values())), reason="gzip, xz or zstd is not installed"
)
def test_random_damage_is_told_by_the_rules_of_the_programs_themselves(tmp_path: Path, suffix: str):
    draw, path = random.Random(suffix), tmp_path / f"a.txt{suffix}"
    program = PROGRAMS[suffix]
    # As the program packs, with a checksum: of what is damaged, decoders make different things.
    pack = zstd_of_the_program if suffix == ".zst" else PACK[suffix]
    refused = 0
    for _ in range(40):
        raw = b"".join(
            pack(TEXT[: draw.choice([0, 90, 9_000])]) for _ in range(draw.choice([1, 2]))
        )
        damage = draw.choice(["none", "flip", "flip", "header", "cut", "zeros", "garbage"])
        if damage in ("flip", "header"):
            raw = flipped(
                raw, draw.randrange(len(raw) if damage == "flip" else 12), draw.choice(range(8))
            )
        elif damage == "cut":
            raw = raw[: draw.randrange(len(raw))]
        raw += {"zeros": bytes(draw.choice([1, 4, 8])), "garbage": b"more"}.get(damage, b"")
        path.write_bytes(raw)
        if subprocess.run([program, "-t", path], capture_output=True).returncode:
            refused += 1
            with pytest.raises(InputError):
                read(path)
        else:
            unpacked = subprocess.run([program, "-dc", path], capture_output=True, check=True)
            assert read(path) == unpacked.stdout
    assert 10 < refused < 40


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("naïve text\n".encode("utf-16"), ["UTF-16", "iconv"]),
        ("naïve text\n".encode("utf-16-le"), ["zero", "UTF-16", "iconv"]),
        ("naïve text\n".encode("utf-16-be"), ["zero", "UTF-16"]),
        ("naïve text\n".encode("utf-32"), ["UTF-32", "iconv"]),
        (b"\xfe\xff" + "日本語".encode("utf-16-be"), ["UTF-16"]),
        (gzip.compress(TEXT), ["gzip", "unpack"]),
        (lzma.compress(TEXT), ["xz", "unpack"]),
        (zstd(TEXT), ["zstd", "unpack"]),
        (b"PK\x03\x04" + TEXT, ["zip"]),
        (b"\x7fELF\x02\x01\x01" + bytes(90) + b"code", ["zero"]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_what_is_no_text_in_utf8_is_refused(
    tmp_path: Path, name: str, raw: bytes, words: list[str]
):
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert all(word in message for word in [str(path), *words]), message


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_a_byte_order_mark_of_utf8_is_dropped_from_packed_files_too(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK.get(suffix, bytes)(b"\xef\xbb\xbfone\r\rtwo\x00"))
    assert read(path) == b"one\r\rtwo\x00"
