"""TFDS names: with and without a split to evaluate on, and what is said where one is of no use."""

import importlib
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import downloader

from polycom_jax import InputError
from polycom_jax.data import DataConfig, downloads, prepare, sources
from polycom_jax.data.heldout import BOUND, HELDOUT_SHARE, heldout_below
from polycom_jax.data.reader import Source, hashes, split_of
from polycom_jax.data.sources import resolve

SPLITS = {
    "with_validation": {"train": 40, "validation": 10},
    "train_only": {"train": 2_000},
    "with_dev": {"train": 40, "dev": 10},
    "broken": {},
    "downloaded": {},
    "needs_a_package": {},
    "needs_a_package_late": {},
}


class PolycomTestText(tfds.core.GeneratorBasedBuilder):
    """Numbered sentences; its configs differ in their splits."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in SPLITS)
    pkg_dir_path = epath.Path(__file__).parent  # a test module is no package
    folder = Path()
    url = ""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "data_dir": self.folder})

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        config: Any = self.builder_config
        if config.name == "broken":
            raise ConnectionError("the network is away\nfor today")
        if config.name == "downloaded":
            dl_manager.download(self.url)
        if config.name == "needs_a_package":
            importlib.import_module("polycom_absent.io")
        if config.name == "needs_a_package_late":  # as TFDS does it
            try:
                importlib.import_module("polycom_absent.io")
            except ModuleNotFoundError as error:
                raise RuntimeError("a long story") from error
        sizes = SPLITS[config.name]
        return {split: self._generate_examples(split, size) for split, size in sizes.items()}

    def _generate_examples(self, split, size):
        for i in range(size):
            yield i, {"text": f"{split} sentence number {i}", "label": i}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PolycomTestText, "folder", tmp_path / "tfds")
    tfds.display_progress_bar(enable=False)
    yield
    tfds.display_progress_bar(enable=True)


def open_source(tmp_path: Path, source: str, **changes) -> Source:
    cfg = DataConfig(source=source, **changes)
    return resolve(cfg, tmp_path / "cache", lambda message: None)


def texts(source: Source) -> tuple[list[str], list[str]]:
    """The documents to train on, and those held out."""
    reader = source.open()
    by_hash = [origin.side for origin in reader.origins] == ["by hash"]
    bound = heldout_below(hashes(reader), source.name) if by_hash else BOUND
    found = {"train": [], "heldout": []}
    for index, origin in enumerate(reader.origins):
        for _, raw in reader.rows(index):
            assert raw is not None
            found[split_of(origin.side, raw, bound)].append(raw.decode())
    return found["train"], found["heldout"]


def test_a_tfds_name_gives_its_train_and_validation_splits(tmp_path: Path):
    train, heldout = texts(open_source(tmp_path, "polycom_test_text/with_validation"))
    assert train == [f"train sentence number {i}" for i in range(40)]
    assert heldout == [f"validation sentence number {i}" for i in range(10)]


def test_who_waits_for_another_that_prepares_holds_the_same_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "polycom_test_text/with_validation"
    waiting = sources.find_builder(name)  # before there is anything
    first = open_source(tmp_path, name)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "find_builder", lambda source: waiting)
        second = open_source(tmp_path, name)
    assert second.fingerprint == first.fingerprint
    assert texts(second) == texts(first)


def test_a_split_called_dev_is_held_out_and_a_name_that_is_no_split_is_refused(tmp_path: Path):
    train, heldout = texts(open_source(tmp_path, "polycom_test_text/with_dev"))
    assert (len(train), heldout) == (40, [f"dev sentence number {i}" for i in range(10)])
    name = "polycom_test_text/with_validation"
    with pytest.raises(InputError, match=r"Unknown TFDS split 'val'.*Known: train, validation"):
        open_source(tmp_path, name, heldout="val").open()


def test_splits_can_be_named_and_sliced(tmp_path: Path):
    name = "polycom_test_text/with_validation"
    train, heldout = texts(
        open_source(tmp_path, name, train_split="train[:50%]", heldout="train[50%:]")
    )
    assert (len(train), len(heldout)) == (20, 20)
    assert train + heldout == [f"train sentence number {i}" for i in range(40)]


@pytest.mark.parametrize("train", ["validation", "train+validation", "validation[:1]", "all"])
def test_what_is_trained_on_is_never_held_out_by_default(tmp_path: Path, train: str):
    name = "polycom_test_text/with_validation"
    origins = open_source(tmp_path, name, train_split=train).open().origins
    assert [(origin.name, origin.side) for origin in origins] == [(train, "by hash")]


@pytest.mark.parametrize(
    ("train", "heldout", "both"),
    [
        ("train", "train", "train[0:40]"),
        ("train[:90%]", "train[80%:]", "train[32:36]"),
        ("train+validation", "validation[-3:]", "validation[7:10]"),
    ],
)
def test_a_split_that_is_trained_on_is_not_held_out(tmp_path: Path, train, heldout, both):
    name = "polycom_test_text/with_validation"
    with pytest.raises(InputError) as caught:
        open_source(tmp_path, name, train_split=train, heldout=heldout)
    assert f"share {both}, which" in str(caught.value)


def test_without_a_validation_split_a_share_is_held_out_by_content(tmp_path: Path):
    train, heldout = texts(open_source(tmp_path, "polycom_test_text/train_only"))
    everything = {f"train sentence number {i}" for i in range(2_000)}
    assert set(train) | set(heldout) == everything
    assert len(train) + len(heldout) == 2_000
    assert len(heldout) / 2_000 == pytest.approx(HELDOUT_SHARE, abs=0.015)


@pytest.mark.parametrize("most", [100, 9_000, 10**9])
def test_a_split_is_read_in_parts_of_about_the_size_asked_for(tmp_path: Path, most: int):
    reader = open_source(tmp_path, "polycom_test_text/train_only").open()
    rows = [0, *reader.cuts(0, most)]
    parts = [list(reader.rows(0, *part)) for part in zip(rows, [*rows[1:], None], strict=True)]
    assert [row for part in parts for row in part] == list(reader.rows(0))
    assert len(parts) == -(-reader.origins[0].size // most)
    assert max(sum(len(raw or b"") for _, raw in part) for part in parts) < most + 60


def test_a_folder_that_tfds_prepared_is_read(tmp_path: Path):
    source = open_source(tmp_path, "polycom_test_text/with_validation")
    (folder,) = {p.parent for p in (tmp_path / "tfds").rglob("dataset_info.json")}
    again = open_source(tmp_path, str(folder))
    assert again.fingerprint == source.fingerprint
    assert texts(again) == texts(source)


def test_the_fingerprint_follows_the_splits_and_the_field(tmp_path: Path):
    name = "polycom_test_text/with_validation"
    sources = [
        open_source(tmp_path, name),
        open_source(tmp_path, name, train_split="train[:50%]"),
        open_source(tmp_path, name, train_split="train[:50%]", heldout="train[50%:]"),
        open_source(tmp_path, "polycom_test_text/train_only"),
    ]
    assert len({source.fingerprint for source in sources}) == 4


def test_a_tfds_name_is_prepared_to_the_end(tmp_path: Path):
    cfg = DataConfig(
        source="polycom_test_text/with_validation", tokenizer="bytes", cache_dir=str(tmp_path)
    )
    corpus = prepare(cfg, vocab_size=300)
    assert (corpus.train.num_documents, corpus.heldout.num_documents) == (40, 10)
    assert corpus.summary["source"] == "polycom_test_text/with_validation/1.0.0"


@pytest.mark.parametrize("name", ["c4/en", "lm1b", "wiki40b/en"])
def test_the_well_known_text_corpora_are_found(name: str, capfd: pytest.CaptureFixture[str]):
    assert sources.find_builder(name).info.full_name.startswith(f"{name}/")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("polycom_test_texts", {}, ["neither a file nor a TFDS name", "polycom_test_text"]),
        ("polycom_test_text/absent", {}, ["absent"]),
        ("c4/em", {}, ["no config 'em'", "nearest of its 5: en"]),
        ("polycom_test_text/broken", {}, ["ConnectionError", "the network is away"]),
        ("polycom_test_text/needs_a_package", {}, ["`pip install polycom-absent`"]),
        ("polycom_test_text/needs_a_package_late", {}, ["`pip install polycom-absent`"]),
        ("polycom_test_text/train_only", {"text_field": "body"}, ["'body'", "text", "label"]),
        ("polycom_test_text/train_only", {"text_field": "label"}, ["'label'", "not text"]),
        ("polycom_test_text/train_only", {"train_split": "trian"}, ["'trian'", "'train'"]),
        ("absent_folder/absent.txt", {}, ["no such file"]),
    ],
)
def test_what_tfds_cannot_give_is_said_in_a_line(
    tmp_path: Path, source: str, changes: dict[str, str], words: list[str]
):
    with pytest.raises(InputError) as caught:
        open_source(tmp_path, source, **changes).open()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome"], ids=["none", "part"]
)
def test_a_server_that_falls_silent_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
):
    monkeypatch.setattr(downloads, "SILENT_S", 0.3)
    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        monkeypatch.setattr(PolycomTestText, "url", f"http://{host}:{port}/text.txt")

        def answer() -> None:
            with server.accept()[0] as line:
                line.recv(4096)
                line.sendall(said)
                over.wait(60)

        over, thread = threading.Event(), threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(InputError, match=rf"host='{host}', port={port}.*[Rr]ead timed out"):
                open_source(tmp_path, "polycom_test_text/downloaded").open()
        finally:
            over.set()
            thread.join()


def test_data_that_only_tensorflow_reads_come_with_the_command_that_converts_them(tmp_path: Path):
    builder: Any = PolycomTestText(config="with_validation")
    builder.download_and_prepare(file_format="array_record")
    about = Path(builder.data_dir, "dataset_info.json")
    about.write_text(about.read_text().replace("array_record", "tfrecord"))  # as if written so
    with pytest.raises(InputError) as caught:
        open_source(tmp_path, builder.data_dir).open()
    command = "tfds convert_format --out_file_format=array_record --dataset_version_dir="
    assert f"`{command}{builder.data_dir}`" in str(caught.value)


def test_a_document_of_tfds_is_named_by_its_number(tmp_path: Path):
    reader = open_source(tmp_path, "polycom_test_text/with_validation").open()
    assert [name for name, _ in reader.rows(1, 3, 5)] == ["Document 4", "Document 5"]


def record_file(folder: str) -> Path:
    """The file of the training documents as TFDS has prepared them."""
    (path,) = Path(folder).rglob("*train.array_record*")
    return path


@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_a_record_whose_checksum_is_wrong_is_an_error_or_counted(tmp_path: Path, damaged: Any):
    source = "polycom_test_text/with_validation"
    cfg = DataConfig(source, "bytes", cache_dir=str(tmp_path / "c"), damaged=damaged)
    open_source(tmp_path, source)
    path = record_file(str(tmp_path / "tfds"))
    data = bytearray(path.read_bytes())
    data[data.index(b"train sentence number 20")] ^= 1
    path.write_bytes(bytes(data))
    if damaged == "error":
        with pytest.raises(InputError, match=r"Record 21 of the data in .*checksum|hash") as e:
            prepare(cfg, vocab_size=300)
        assert "data.damaged='skip'" in str(e.value)
        assert str(path.parent) in str(e.value)
    else:
        train = prepare(cfg, vocab_size=300).summary["train"]
        assert (train["damaged"], train["documents"]) == (1, 39)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), Path.unlink])
def test_records_that_are_gone_are_an_error_even_where_some_may_be_skipped(
    tmp_path: Path, damage: Any
):
    source = "polycom_test_text/with_validation"
    open_source(tmp_path, source)
    damage(record_file(str(tmp_path / "tfds")))
    cfg = DataConfig(source, "bytes", cache_dir=str(tmp_path / "c"), damaged="skip")
    with pytest.raises(InputError):
        prepare(cfg, vocab_size=300)
