"""Reading local files, and which documents are held out."""

import gzip
import json
import lzma
import os
import sys
from pathlib import Path

import pytest
from corpora import zstd

from polycom_jax import InputError
from polycom_jax.data import documents, files, heldout, stdlib
from polycom_jax.data.rows import Reading

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def read(*paths: Path, text_field: str = "text", document_bytes: int = 1 << 16) -> list[bytes]:
    reading = Reading(text_field, document_bytes)
    rows = (row for path in paths for row in documents.file_rows(path, reading))
    return [raw for _, raw in rows if raw is not None]


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_standard_library_is_sorted_and_holds_neither_tests_nor_installed_packages():
    names = [name for name, _ in stdlib.stdlib_documents()]
    assert names == sorted(names)
    assert {"json/decoder.py", "collections/__init__.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "site-packages", "idlelib", "encodings", "__pycache__"}
    assert not any("_sysconfigdata" in name for name in names)


def test_the_name_of_the_standard_library_tells_the_python_version():
    assert stdlib.stdlib_name().endswith(sys.version.split()[0].rstrip("+"))


def test_a_plain_file_keeps_every_byte(tmp_path: Path):
    raw = "a\tb\r\n\r\n  naïve 🙂\n\x00end".encode() + b"\xff"
    (tmp_path / "a.txt").write_bytes(raw)
    assert read(tmp_path / "a.txt") == [raw]


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")
    assert read(tmp_path / "a.txt") == [b"one\n\xef\xbb\xbftwo"]


def test_a_long_plain_file_is_cut_at_line_ends_without_losing_a_byte(tmp_path: Path):
    raw = b"".join(b"line %d\n" % i for i in range(1000)) + b"no line end"
    (tmp_path / "a.txt").write_bytes(raw)
    parts = read(tmp_path / "a.txt", document_bytes=100)
    assert b"".join(parts) == raw
    assert all(100 <= len(part) < 120 and part.endswith(b"\n") for part in parts[:-1])


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_line_that_is_too_long_is_cut_between_characters(tmp_path: Path, size: int, suffix: str):
    text = "aé🙂\u20ac" * 50 + "\nshort\n" + "🙂" * 90
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](text.encode()))
    parts = read(path, document_bytes=size)
    assert "".join(part.decode() for part in parts) == text
    assert len(parts) > 5
    assert all(size <= len(part) < 2 * size + 3 for part in parts[:-1])


@pytest.mark.parametrize("raw", [b"\x80" * 50, b"a" * 19 + b"\xf0\x9f", b"\xff\xf0" * 30])
def test_bytes_that_are_not_utf8_are_kept_where_a_line_is_cut(tmp_path: Path, raw: bytes):
    (tmp_path / "a.txt").write_bytes(raw)
    assert b"".join(read(tmp_path / "a.txt", document_bytes=10)) == raw


def test_documents_know_where_they_stand(tmp_path: Path):
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_bytes(b"0123\n56\n")
    lines.write_bytes(b'{"text": "x"}\n\n{"text": "y"}\n')
    reading = Reading(document_bytes=5)
    rows = [*documents.file_rows(plain, reading), *documents.file_rows(lines, reading)]
    names = ["a.txt, from byte 0", "a.txt, from byte 5", "b.jsonl, line 1", "b.jsonl, line 3"]
    assert [name for name, _ in rows] == names


@pytest.mark.parametrize("suffix", PACK)
def test_json_lines_are_read_plain_and_packed(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = b'{"text": "one\\r\\n"}\n\n{"text": "zwei \xc3\xb6"}\n'
    path.write_bytes(PACK[suffix](lines))
    assert read(path) == [b"one\r\n", "zwei ö".encode()]


def test_bytes_that_are_not_utf8_come_through_json_lines_unchanged(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\xffb"}\n{"text": "\\ud800"}\n')
    first, second = read(path)
    assert first == b"a\xffb"
    with pytest.raises(UnicodeDecodeError):
        second.decode()


def test_surrogates_that_json_spells_out_are_no_bytes_of_a_character(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\udcc3\\udca9"}\n{"text": "\\ud83d\\ude42"}\n')
    halves, pair = read(tmp_path / "a.jsonl")
    assert pair.decode() == "🙂"
    with pytest.raises(UnicodeDecodeError):
        halves.decode()


def test_a_number_that_is_none_is_no_matter_beside_the_text(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"text": "a", "score": NaN}\r\n  \n{"text": "b"}')
    assert read(tmp_path / "a.jsonl") == [b"a", b"b"]


def test_another_field_can_hold_the_text(tmp_path: Path):
    assert read(jsonl(tmp_path / "a.jsonl", {"body": "x"}), text_field="body") == [b"x"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"body": "x"}', ["line 2", "'text' is missing", "'body'", "data.text_field"]),
        ('{"text": 3}', ["line 2", "'text' is of type int", "expected text"]),
        ("[1]", ["line 2", "list", "expected a JSON object"]),
        ('{"text": ', ["line 2", "not JSON"]),
        ('{"text": "a", "text": "b"}', ["line 2", "'text' twice"]),
        ('{"text": NaN}', ["line 2", "'text' is of type float"]),
        ('{"text": null}', ["line 2", "'text' is of type NoneType"]),
        ('{"text": "a"} {"text": "b"}', ["line 2", "not JSON"]),
        ('{"text": "a"}\r{"text": "b"}', ["line 2", "not JSON"]),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path: Path, line: str, words: list[str]):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ["a.jsonl", *words]), message


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not packed" + b])
def test_a_damaged_packed_file_is_named(tmp_path: Path, suffix: str, pack, damage):
    text = b"".join(b'{"text": "%d"}\n' % (i * 7919) for i in range(5000))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(damage(pack(text)))
    with pytest.raises(InputError, match="damaged or cut short"):
        read(path)


def test_a_glob_gives_its_files_sorted(tmp_path: Path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = files.matched_files(str(tmp_path / "**" / "*.txt"))
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.txt", "b.txt", "sub/c.txt"]


@pytest.mark.parametrize(
    ("name", "match"),
    [("absent.txt", "no such file"), ("*.gone", "no such file"), ("a.bin", "neither .txt nor")],
)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, name: str, match: str):
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(InputError, match=match):
        files.matched_files(str(tmp_path / name))


def test_a_link_to_nothing_is_refused_and_not_left_out(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    for name in ("*.txt", "b.txt"):
        with pytest.raises(InputError, match=r"b\.txt links to .*gone\.txt, which is not there"):
            files.matched_files(str(tmp_path / name))


def test_a_link_to_itself_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt links to .*symbolic links"):
        files.matched_files(str(tmp_path / "*.txt"))


@pytest.mark.parametrize("name", ["a.txt", "*.txt"])
def test_a_pipe_is_refused(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt is a pipe or a device"):
        files.matched_files(str(tmp_path / name))


def test_a_file_of_several_names_is_taken_once(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("x")
    (tmp_path / "sub" / "round").symlink_to(tmp_path)  # `**` follows it again and again
    os.link(tmp_path / "sub" / "b.txt", tmp_path / "c.txt")
    (tmp_path / "d.txt").symlink_to("sub/b.txt")
    (tmp_path / "e.txt").write_text("x")
    found = files.one_each(files.matched_files(str(tmp_path / "**" / "*.txt")))
    assert found == (tmp_path / "c.txt", tmp_path / "e.txt")


def test_a_bracket_in_a_name_is_explained(tmp_path: Path):
    folder = tmp_path / "data [v1]"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"no such file.*'\[' begins a set .*\[\[\]"):
        files.matched_files(f"{folder}/*.txt")
    assert files.matched_files(f"{tmp_path}/data [[]v1]/*.txt") == (folder / "a.txt",)
    assert files.matched_files(f"{folder}/a.txt") == (folder / "a.txt",)


def test_a_name_that_is_no_utf8_is_read_and_written_with_escapes(tmp_path: Path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_bytes(b"text")
    (found,) = files.matched_files(str(tmp_path / "*.txt"))
    assert found == path
    rows = list(documents.file_rows(found, Reading()))
    assert rows == [(r"caf\xe9.txt, from byte 0", b"text")]


def test_a_folder_is_refused_with_the_glob_that_would_do(tmp_path: Path):
    with pytest.raises(InputError, match=r"is a folder.*\*\*/\*\.txt"):
        files.matched_files(str(tmp_path))


def test_about_the_stated_share_is_held_out():
    hashes = [heldout.content_hash(b"document %d" % i) for i in range(20_000)]
    bound = heldout.heldout_below(hashes, "test")
    share = sum(h < bound for h in hashes) / len(hashes)
    assert share == pytest.approx(heldout.HELDOUT_SHARE, abs=0.005)


def test_the_documents_that_are_held_out_are_the_same_in_every_version():
    """A run that a later one goes on with must not train on what it is measured by."""
    hashes = [heldout.content_hash(b"document %d" % i) for i in range(200)]
    bound = heldout.heldout_below(hashes, "test")
    out = [41, 136, 143, 155, 160, 181, 192]
    assert [i for i, one in enumerate(hashes) if one < bound] == out


def test_no_more_documents_are_read_than_it_takes_to_know_the_bound():
    found = iter([heldout.content_hash(b"document %d" % i) for i in range(20_000)])
    assert heldout.heldout_below(found, "test") == heldout.BOUND
    assert len(list(found)) > 19_000


@pytest.mark.parametrize("count", [2, 3, 30, 300])
def test_the_bound_is_the_share_moved_just_so_far_that_both_sides_have_one(count: int):
    for seed in range(30):
        hashes = [heldout.content_hash(b"%d %d" % (seed, i)) for i in range(count)]
        bound = min(max(heldout.BOUND, min(hashes) + 1), max(hashes))
        assert heldout.heldout_below([*hashes, heldout.content_hash(b"")], "test") == bound


@pytest.mark.parametrize("share", [heldout.BOUND, 2**63])
def test_both_sides_have_a_document_however_few_there_are(
    monkeypatch: pytest.MonkeyPatch, share: int
):
    monkeypatch.setattr(heldout, "BOUND", share)
    for seed in range(200):
        raws = [b"%d %d" % (seed, i) for i in range(2)]
        hashes = [*map(heldout.content_hash, raws)]
        bound = heldout.heldout_below(hashes, "test")
        assert min(hashes) < bound <= max(hashes)
        assert sum(heldout.is_heldout(raw, bound) for raw in raws) == 1


@pytest.mark.parametrize(
    ("raws", "match"), [([], "empty"), ([b"", b""], "empty"), ([b"one", b"one"], "single document")]
)
def test_a_corpus_that_cannot_be_split_is_refused(raws: list[bytes], match: str):
    with pytest.raises(InputError, match=match):
        heldout.heldout_below(map(heldout.content_hash, raws), "test")
