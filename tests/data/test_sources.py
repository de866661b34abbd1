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
from polycom_jax.data.documents import HELDOUT_SHARE
from polycom_jax.data.sources import resolve

SPLITS = {
    "with_validation": {"train": 40, "validation": 10},
    "train_only": {"train": 2_000},
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


def open_source(tmp_path: Path, source: str, **changes):
    cfg = DataConfig(source=source, **changes)
    return resolve(cfg, tmp_path / "cache", lambda message: None)


def texts(documents) -> list[str]:
    return [raw.decode() for raw in documents]


def test_a_tfds_name_gives_its_train_and_validation_splits(tmp_path: Path):
    train, heldout = open_source(tmp_path, "polycom_test_text/with_validation").open()
    assert texts(train) == [f"train sentence number {i}" for i in range(40)]
    assert texts(heldout) == [f"validation sentence number {i}" for i in range(10)]


def test_splits_can_be_named_and_sliced(tmp_path: Path):
    name = "polycom_test_text/with_validation"
    train, heldout = open_source(
        tmp_path, name, train_split="train[:50%]", heldout="train[50%:]"
    ).open()
    assert texts(train) + texts(heldout) == [f"train sentence number {i}" for i in range(40)]


def test_without_a_validation_split_a_share_is_held_out_by_content(tmp_path: Path):
    train, heldout = open_source(tmp_path, "polycom_test_text/train_only").open()
    assert len(train) == len(texts(train))
    assert len(heldout) == len(texts(heldout))
    everything = {f"train sentence number {i}" for i in range(2_000)}
    assert set(texts(train)) | set(texts(heldout)) == everything
    assert len(train) + len(heldout) == 2_000
    assert len(heldout) / 2_000 == pytest.approx(HELDOUT_SHARE, abs=0.015)


@pytest.mark.parametrize("stride", [1, 7, 300])
def test_every_kth_document_is_taken(tmp_path: Path, stride: int):
    for documents in open_source(tmp_path, "polycom_test_text/train_only").open():
        assert list(documents.every(stride)) == list(documents)[::stride]


def test_a_folder_that_tfds_prepared_is_read(tmp_path: Path):
    source = open_source(tmp_path, "polycom_test_text/with_validation")
    (folder,) = {p.parent for p in (tmp_path / "tfds").rglob("dataset_info.json")}
    again = open_source(tmp_path, str(folder))
    assert again.fingerprint == source.fingerprint
    assert texts(again.open()[0]) == texts(source.open()[0])


def test_the_fingerprint_follows_the_splits_and_the_field(tmp_path: Path):
    name = "polycom_test_text/with_validation"
    sources = [
        open_source(tmp_path, name),
        open_source(tmp_path, name, train_split="train[:50%]"),
        open_source(tmp_path, name, heldout="train"),
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
    assert sources._find_builder(name).info.full_name.startswith(f"{name}/")
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
    _, heldout = open_source(tmp_path, "polycom_test_text/with_validation").open()
    assert heldout.where(3) == "Document 4"
