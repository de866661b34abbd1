"""The standard library as a TFDS builder; importing this imports TFDS, but not TensorFlow.

Examples are {"text": bytes, "path": where}, in the order of the files, in one split. They are
written and read as ArrayRecord, whose random access needs no TensorFlow (`as_data_source`).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from polycom_jax.data.stdlib import stdlib_documents

ALL = "train"
"""The split with all documents; TFDS reserves the word "all"."""


class Stdlib(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Source text of the running Python's standard library; see `stdlib_documents`."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "path": tfds.features.Text()}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Nothing to download.
        return {ALL: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        for index, (name, raw) in enumerate(stdlib_documents()):
            yield index, {"text": raw, "path": name}

    # TFDS prints these two lines to stdout; a library says nothing.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


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
