"""TFDS builders of the local corpora; importing this imports TFDS, but not TensorFlow.

Examples are {"text": bytes, "path": where}, in the order of the files; splits are `train` and
`heldout`, which is `documents.HELDOUT_SHARE` of the documents by content hash, or files of its own.
A config's `description` is what messages call the corpus. The examples are written and read as
ArrayRecord, whose random access needs no TensorFlow (`as_data_source`).
"""

import abc
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from polycom_jax._errors import InputError
from polycom_jax.data import documents

# Without TextConfig: TFDS annotates its base with names that the API reference cannot look up.
__all__ = ["Stdlib", "Text", "quiet"]


@dataclasses.dataclass(eq=False, kw_only=True)
class TextConfig(tfds.core.BuilderConfig):
    """Which files a `Text` builder reads, and how; see `documents.text_documents`.

    With `heldout_files`, named `heldout` in messages, nothing of `files` is held out.
    """

    files: tuple[str, ...] = ()
    heldout_files: tuple[str, ...] = ()
    heldout: str = ""
    text_field: str = "text"
    document_bytes: int = 65_536
    damaged: str = "error"


class _LocalCorpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes raw documents as they come; holds out by content hash.

    `info.metadata` has the number of damaged records left out, by the split they were for.
    """

    VERSION = tfds.core.Version("1.0.0")

    @abc.abstractmethod
    def _documents(self) -> Iterator[tuple[str, bytes]]:
        """Names and bytes, the same on every call."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "path": tfds.features.Text()}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Nothing to download.
        hashes = (documents.content_hash(raw) for _, raw in self._documents())
        bound = documents.heldout_below(hashes, cast(Any, self.builder_config).description)
        return {
            "train": self._generate_examples(self._side(bound, heldout=False)),
            "heldout": self._generate_examples(self._side(bound, heldout=True)),
        }

    def _side(self, bound: int, *, heldout: bool) -> Iterator[tuple[str, bytes]]:
        for name, raw in self._documents():
            if (documents.content_hash(raw) < bound) == heldout:
                yield name, raw

    def _generate_examples(self, found: Iterable[tuple[str, bytes]]) -> Iterator[tuple[int, Any]]:
        for index, (name, raw) in enumerate(found):
            yield index, {"text": raw, "path": name}

    # TFDS prints these two lines to stdout; a library says nothing.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


class Stdlib(_LocalCorpus):
    """Source text of the running Python's standard library; see `documents.stdlib_documents`."""

    def _documents(self) -> Iterator[tuple[str, bytes]]:
        return documents.stdlib_documents()


class Text(_LocalCorpus):
    """Local .txt and .jsonl files, also .gz and .xz; give a `TextConfig`."""

    @property
    def _config(self) -> TextConfig:
        return cast(TextConfig, self.builder_config)

    def _documents(self) -> Iterator[tuple[str, bytes]]:
        return self._read("train", self._config.files)

    def _read(self, split: str, files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        skipped: set[str] = set()

        def skip(where: str, error: InputError) -> None:
            skipped.add(where)
            cast(dict[str, int], self.info.metadata)[split] = len(skipped)

        return documents.text_documents(
            map(Path, files),
            text_field=self._config.text_field,
            document_bytes=self._config.document_bytes,
            skip=skip if self._config.damaged == "skip" else documents.refuse,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self._config
        if not config.heldout_files:
            return super()._split_generators(dl_manager)
        sides = {
            "train": (config.files, cast(str, config.description)),
            "heldout": (config.heldout_files, config.heldout),
        }
        return {
            split: self._generate_examples(documents.some_text(self._read(split, files), name))
            for split, (files, name) in sides.items()
        }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from drawing bars and logging below errors; restores both at the block's end."""
    from absl import logging
    from tensorflow_datasets.core.utils import tqdm_utils

    shown = tqdm_utils._active  # There is a public setter, but no getter.
    verbosity = logging.get_verbosity()
    tfds.display_progress_bar(enable=False)
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        tfds.display_progress_bar(enable=shown)
        logging.set_verbosity(verbosity)
