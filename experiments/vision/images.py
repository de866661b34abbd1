"""An image set of TFDS in memory, in three parts: to train on, to choose by, to judge by.

TFDS reads a prepared set without TensorFlow; to prepare most others than the digits it needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from polycom_jax._errors import require
from polycom_jax.data.builders import quiet
from polycom_jax.data.cache import local_cache_folder
from polycom_jax.data.heldout import TEST_SPLITS, VALIDATION_SPLITS
from polycom_jax.data.records import open_split
from polycom_jax.data.sources import find_builder, prepare_builder

DIGITS = "digits"
SHARE = 0.2
"""Of a data set that has no such split: for validation, and as much for the test."""
SPLIT_SEED = 0
"""Draws those parts: they are the same for every run of every study."""
LOCK_TIMEOUT_S = 3600.0
READ_AT_ONCE = 1024

PARTS = {"train": ("train",), "validation": VALIDATION_SPLITS, "test": TEST_SPLITS}
"""Part -> names of the split that is it."""


class Part(NamedTuple):
    """Images and their classes."""

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int[np.ndarray, " N"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set in memory.

    Attributes:
        name: as TFDS has it.
        classes: how many.
        train: trained on.
        validation: learning rates are chosen by it.
        test: results are on it.
    """

    name: str
    classes: int
    train: Part
    validation: Part
    test: Part

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def statistics(self) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
        """Mean and standard deviation of each channel over the images that are trained on."""
        pixels = self.train.images.reshape(-1, self.shape[-1])
        mean, deviation = pixels.mean(0, np.float64), pixels.std(0, np.float64)
        return mean.astype(np.float32), np.maximum(deviation, 1e-3).astype(np.float32)


def load(name: str, report: Callable[[str], None]) -> ImageSet:
    """The data set of that name, downloaded and prepared where it is not yet.

    Args:
        name: "digits", a TFDS name such as "cifar10", or a folder that TFDS prepared.
        report: takes a line on what is being done.

    Raises:
        InputError: there is none, or its examples are not images of one shape with a class each.
    """
    with quiet():
        builder = _builder(name)
        cache = local_cache_folder(None)
        prepare_builder(builder, cache, timeout_s=LOCK_TIMEOUT_S, report=report)
    image, label = _keys(builder)
    title, folder = builder.info.full_name, str(builder.data_dir)
    found = {
        part: _read(folder, split, image, label)
        for part, names in PARTS.items()
        if (split := next((each for each in names if each in builder.info.splits), None))
    }
    require("train" in found, f"--data {name}: {title} has no split 'train'.")
    return ImageSet(title, _classes(builder, label), **divided(found, name))


def _builder(name: str) -> Any:
    if name == DIGITS:
        from experiments.vision import digits

        return digits.builder(local_cache_folder(None))
    import tensorflow_datasets.image_classification  # noqa: F401  registers mnist and the like

    return find_builder(name, "--data")


def _keys(builder: Any) -> tuple[str, str]:
    """The fields that hold image and class."""
    from tensorflow_datasets import features as kinds

    title, features = builder.info.full_name, builder.info.features
    image, label = (*(builder.info.supervised_keys or ("image", "label")), "", "")[:2]
    held = {name: features[name] for name in (image, label) if name in features}
    pictures, label_kind = (kinds.Image, kinds.Tensor), kinds.ClassLabel
    require(
        isinstance(held.get(image), pictures) and isinstance(held.get(label), label_kind),
        f"--data: examples of {title} must be an image with a class, and they have the fields"
        f" {', '.join(features)}; take a data set for image classification.",
    )
    shape, dtype = held[image].shape, np.dtype(held[image].np_dtype)
    require(
        len(shape) == 3 and None not in shape and dtype == np.uint8,
        f"--data: images of {title} have the shape {shape} in {dtype}; one shape of height, width"
        " and channels for all of them, in uint8, is needed, as cifar10 and mnist have it.",
    )
    return image, label


def _classes(builder: Any, label: str) -> int:
    return int(builder.info.features[label].num_classes)


def _read(folder: str, split: str, image: str, label: str) -> Part:
    records = open_split(folder, split)
    images, labels = [], []
    for first in range(0, len(records), READ_AT_ONCE):
        last = min(first + READ_AT_ONCE, len(records))
        for record in records.__getitems__(range(first, last)):
            images.append(record[image])
            labels.append(record[label])
    return Part(np.stack(images), np.asarray(labels, np.int32))


def divided(found: dict[str, Part], name: str) -> dict[str, Part]:
    """All three parts: those that are missing are drawn from the images to train on."""
    train = found["train"]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train.labels))
    count = int(SHARE * len(order))
    parts = dict(found)
    for part in ("test", "validation"):
        if part not in found:
            chosen, order = order[:count], order[count:]
            parts[part] = _at(train, chosen)
    parts["train"] = _at(train, order)
    for part, own in parts.items():
        require(len(own.labels) > 0, f"--data {name}: no images are left for the part {part!r}.")
    return parts


def _at(part: Part, rows: Int[np.ndarray, " N"]) -> Part:
    return Part(part.images[rows], part.labels[rows])
