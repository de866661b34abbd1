"""Tables: Parquet files, and folders of Hugging Face datasets."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import table, texts
from stores import documents as documents_of

from polycom_jax import InputError
from polycom_jax.data import Corpus, DataConfig, documents, hf_folder, prepare
from polycom_jax.data.heldout import HELDOUT_SPLITS
from polycom_jax.data.rows import Reading


def parquet(path: Path, found: list[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(found), path, **options)
    return path


def arrow(path: Path, found: list[Any]) -> Path:
    """As `datasets` writes it: a stream of record batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table(found).schema) as out:
        out.write_table(table(found), max_chunksize=7)
    return path


WRITE = {"a.parquet": lambda p, t: parquet(p, t, row_group_size=9), "a.arrow": arrow}


def read(path: Path, *rows: int | None, **reading: Any) -> list[tuple[str, bytes | None]]:
    return list(documents.file_rows(path, Reading(**reading), *rows))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", WRITE)
def test_any_range_of_rows_is_read(tmp_path: Path, name: str):
    found = texts(40)
    path = WRITE[name](tmp_path / name, found)
    every = [(f"{name}, row {i + 1}", text.encode()) for i, text in enumerate(found)]
    assert read(path) == every
    for first, last in ((0, 3), (5, 22), (9, 18), (17, None), (39, 60), (40, None)):
        assert read(path, first, last) == every[first:last]
    assert documents.cuts(path, Reading(), 1)[-1] == 40


@pytest.mark.parametrize("name", WRITE)
def test_a_column_is_named_and_a_null_is_damage(tmp_path: Path, name: str):
    path = WRITE[name](tmp_path / name, ["a", None, "b"])
    with pytest.raises(InputError, match=r"row 2: column 'text' is null"):
        read(path)
    found = read(path, skip_damaged=True)
    assert [raw for _, raw in found] == [b"a", None, b"b"]
    for field, words in (
        ("body", r"no column 'body'; its columns: id, text\..*data\.text_field"),
        ("id", "column 'id' holds int64, not text"),
    ):
        with pytest.raises(InputError, match=words):
            documents.check_files([path], Reading(field))


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"text", lambda b: b""])
def test_a_damaged_table_is_refused_in_a_line(tmp_path: Path, name: str, damage: Any):
    path = WRITE[name](tmp_path / name, texts(400))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"is damaged or cut short .*fetch or compress") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert read(path, skip_damaged=True)[-1][1] is None


@pytest.mark.parametrize("name", WRITE)
def test_text_that_is_no_utf8_is_for_the_cleaner(tmp_path: Path, name: str):
    """Arrow calls any bytes text; what becomes of them is `data.undecodable`'s to say."""
    raws = [b"caf\xe9", None, "caf\u00e9".encode()]
    column = pa.array(raws, pa.binary())
    texts_of_it = pa.Array.from_buffers(pa.string(), 3, column.buffers())
    path = WRITE[name](tmp_path / name, texts_of_it)
    assert [raw for _, raw in read(path, skip_damaged=True)] == raws


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_every_kind_of_text_that_arrow_has_is_read(tmp_path: Path, name: str, kind: pa.DataType):
    words = ["naïve", "text", "naïve"]
    found = pa.table({"text": pa.array(words).cast(kind)})
    if name == "a.parquet":
        pq.write_table(found, tmp_path / name)
    else:
        with pa.ipc.new_stream(tmp_path / name, found.schema) as out:
            out.write_table(found)
    assert [raw for _, raw in read(tmp_path / name)] == [word.encode() for word in words]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, twice.schema) as out,
    ):
        out.write_table(twice)
    pq.write_table(twice, tmp_path / "a.parquet")
    for name in WRITE:
        with pytest.raises(InputError, match=r"2 columns 'text'.* rename all but one"):
            read(tmp_path / name)


def made(tmp_path: Path, source: Any, **changes: Any) -> Corpus:
    cfg = DataConfig(str(source), "bytes", cache_dir=str(tmp_path / "cache"), **changes)
    return prepare(cfg, vocab_size=300)


def split_texts(corpus: Corpus) -> tuple[list[str], list[str]]:
    tokenizer = corpus.tokenizer
    return documents_of(corpus.train, tokenizer), documents_of(corpus.heldout, tokenizer)


def test_a_folder_of_parquet_files_has_its_splits(tmp_path: Path):
    folder = tmp_path / "set"
    for index in range(2):
        parquet(folder / "data" / f"train-0000{index}-of-00002.parquet", texts(9, f"part {index}"))
    parquet(folder / "data" / "test-00000-of-00001.parquet", texts(4, "test"))
    parquet(folder / "data" / "validation-00000-of-00001.parquet", texts(5, "valid"))
    train = [*texts(9, "part 0"), *texts(9, "part 1")]
    assert split_texts(made(tmp_path, folder)) == (train, texts(5, "valid"))
    assert split_texts(made(tmp_path, folder, heldout="test")) == (train, texts(4, "test"))
    assert split_texts(made(tmp_path, folder, train_split="test"))[0] == texts(4, "test")
    with pytest.raises(InputError, match=r"Unknown split of .*'dev'.*test, train, validation"):
        made(tmp_path, folder, train_split="dev")
    # What is trained on is not held out, and all of the text is all of its splits.
    held = split_texts(made(tmp_path, folder, train_split="validation"))
    assert held == (texts(5, "valid"), texts(4, "test"))
    every = [*train, *texts(4, "test"), *texts(5, "valid")]
    assert sorted(split_texts(made(tmp_path, folder, heldout=str(folder)))[1]) == sorted(every)


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *(("val", "validation"), ("eval", "test"), ("evaluation", "test"), ("testing", "test")),
        *(("training", "train"), ("valid", "valid"), ("value", "train")),
    ],
)
def test_splits_go_by_hugging_face_s_words(tmp_path: Path, word: str, split: str):
    parquet(tmp_path / f"{word}-00000-of-00001.parquet", ["a"])
    assert [*hf_folder.splits(tmp_path)] == [split]


@pytest.mark.parametrize("word", ["val", "dev", "valid", "eval"])
def test_a_split_by_any_of_its_names_is_held_out_by_default_and_by_that_name(
    tmp_path: Path, word: str
):
    folder = tmp_path / "set"
    parquet(folder / "train-00000-of-00001.parquet", texts(9, "train"))
    parquet(folder / f"{word}-00000-of-00001.parquet", texts(4, word))
    for heldout in (None, word):
        assert split_texts(made(tmp_path, folder, heldout=heldout))[1] == texts(4, word)
    trained = split_texts(made(tmp_path, folder, train_split=word))
    assert sorted([*trained[0], *trained[1]]) == texts(4, word)
    with pytest.raises(InputError, match=r"'other': no such file.* Nor is it a split .* train"):
        made(tmp_path, folder, heldout="other")


@pytest.mark.parametrize("word", HELDOUT_SPLITS)
def test_a_saved_dataset_holds_out_what_is_called_so(tmp_path: Path, word: str):
    saved(tmp_path / "dict" / "train", texts(9, "train"))
    saved(tmp_path / "dict" / word, texts(4, word))
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", word]}))
    assert split_texts(made(tmp_path, tmp_path / "dict"))[1] == texts(4, word)


def test_a_folder_of_one_split_holds_a_share_out(tmp_path: Path):
    parquet(tmp_path / "set" / "0.parquet", texts(200, "a"))
    parquet(tmp_path / "set" / "1.parquet", texts(200, "b"))
    train, heldout = split_texts(made(tmp_path, tmp_path / "set"))
    assert {*train, *heldout} == {*texts(200, "a"), *texts(200, "b")}
    assert 0 < len(heldout) < 60


def saved(folder: Path, *parts: list[Any]) -> None:
    """A dataset as `save_to_disk` leaves it."""
    names = [f"data-{index:05}-of-{len(parts):05}.arrow" for index in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        arrow(folder / name, part)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))


def test_what_save_to_disk_wrote_is_read(tmp_path: Path):
    saved(tmp_path / "one", texts(200, "a"), texts(90, "b"))
    train, heldout = split_texts(made(tmp_path, tmp_path / "one"))
    assert {*train, *heldout} == {*texts(200, "a"), *texts(90, "b")}
    saved(tmp_path / "dict" / "train", texts(20, "a"))
    saved(tmp_path / "dict" / "test", texts(3, "t"))
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert split_texts(made(tmp_path, tmp_path / "dict")) == (texts(20, "a"), texts(3, "t"))
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00001-of-00002\.arrow is missing"):
        hf_folder.splits(tmp_path / "one")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *(("state.json", "{}"), ("state.json", "[]"), ("state.json", '{"_data_files": [{}]}')),
        *(("state.json", '{"_data_files": 5}'), ("dataset_dict.json", "{}")),
        *(("dataset_dict.json", "[]"), ("dataset_dict.json", '{"splits": [5]}')),
    ],
)
def test_a_damaged_list_of_files_is_refused_in_a_line(tmp_path: Path, file: str, text: str):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=rf"{file} (has no .* save the dataset again|must hold)"):
        hf_folder.splits(tmp_path)


def test_a_folder_that_holds_no_dataset_is_none(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    assert hf_folder.splits(tmp_path) == {}
    assert hf_folder.splits(tmp_path / "absent") == {}
