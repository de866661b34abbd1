"""scikit-learn's handwritten digits as a TFDS builder; neither network nor TensorFlow is needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from polycom_jax._errors import InputError

SPLIT = "train"
"""The one split: the set has none of its own."""


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,797 images of 8 x 8 pixels with values 0 to 16, ten classes (Alpaydin and Kaynak 1998)."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            # Not tfds.features.Image, which compresses by TensorFlow.
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # scikit-learn ships the images
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = images.astype(np.uint8).reshape(-1, 8, 8, 1)
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}

    # TFDS prints these two lines to stdout, which may be for --json.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


def builder(cache: Path) -> Digits:
    """The builder, its files in this cache folder.

    Raises:
        InputError: the files are not there yet, and scikit-learn is not installed.
    """
    found = Digits(data_dir=cache / "tfds")
    if not found.is_prepared():
        try:
            import sklearn  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError(
                "--data digits: scikit-learn ships these images and is not installed;"
                " pip install -c constraints.txt -e '.[vision]', or give a TFDS name."
            ) from error
    return found
