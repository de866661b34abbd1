"""From a config's `source` to the raw documents of its two splits, through TFDS."""

import contextlib
import difflib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polycom_jax._errors import InputError, require, unknown
from polycom_jax.data import documents, downloads, local
from polycom_jax.data.cache import Report, digest, locked
from polycom_jax.data.config import DataConfig
from polycom_jax.data.local import Source, read_split
from polycom_jax.data.records import Documents, one_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_HELDOUT_SPLITS = ("validation", "valid", "heldout", "test")
_GLOB_SIGNS = frozenset("*?[")


def resolve(cfg: DataConfig, cache: Path, report: Report) -> Source:
    """The source that `cfg.source` names: "stdlib", local files, or TFDS.

    Local files are read once here, for their fingerprint; a TFDS name is downloaded and prepared
    here if it is not yet (TFDS shows its own bars then).

    Raises:
        InputError: no such file or name, or nothing usable in it.
    """
    if cfg.source == "stdlib":
        return local.stdlib(cfg, cache, report)
    if names_files(cfg.source):
        return local.text(cfg, cache, report)
    return _from_tfds(cfg, cache, report)


def names_files(source: str) -> bool:
    """Whether a source is local text files, and neither "stdlib" nor of TFDS."""
    path = os.path.expanduser(source)
    if source == "stdlib" or _is_tfds_folder(source):
        return False
    marked = source.startswith((".", "/", "~")) or not _GLOB_SIGNS.isdisjoint(source)
    suffixes = (*documents.KINDS, *documents.PACKED)
    return marked or os.path.lexists(path) or source.lower().endswith(suffixes)


def _is_tfds_folder(source: str) -> bool:
    return os.path.isfile(os.path.join(os.path.expanduser(source), "dataset_info.json"))


def _from_tfds(cfg: DataConfig, cache: Path, report: Report) -> Source:
    builder = _find_builder(cfg.source)
    name = builder.info.full_name
    lock = cache / "tfds" / f"{digest(str(builder.data_dir))}.lock"
    with locked(lock, timeout_s=cfg.lock_timeout_s, report=report):
        if not builder.is_prepared():
            report(f"Preparing {name} with TFDS in {builder.data_dir}")
            _download(builder)
    features: Any = builder.info.features
    require(
        cfg.text_field in features,
        f"{name} has no field {cfg.text_field!r}; its fields: {', '.join(features)}."
        " Name the one with the text by data.text_field.",
    )
    splits = builder.info.splits
    heldout = cfg.heldout or next((s for s in _HELDOUT_SPLITS if s in splits), None)
    about = [
        (split, info.num_examples, info.num_bytes, info.shard_lengths)
        for split, info in sorted(splits.items())
    ]
    choice = (cfg.text_field, cfg.train_split, heldout, documents.HELDOUT_SHARE)

    def both() -> tuple[Documents, Documents]:
        train = _read(builder, cfg.train_split, cfg)
        if heldout:
            return train, _read(builder, heldout, cfg)
        report(f"Holding {documents.HELDOUT_SHARE:.0%} of {cfg.train_split} out by content hash")
        return _hold_out(train, name)

    return Source(name, digest("tfds", name, about, choice), both)


def _find_builder(source: str) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # Registers the older corpora, c4 for one; else not found.

    from polycom_jax.data import builders

    try:
        # Names with a namespace are looked up on servers.
        with builders.quiet(), downloads.ending(), _own_features(source):
            if _is_tfds_folder(source):
                return tfds.builder_from_directory(Path(source).expanduser())
            return tfds.builder(source)
    except InputError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(source.split("/")[0], known, n=3)
        raise InputError(
            f"data.source={source!r} is neither a file nor a TFDS name."
            f" Nearest names: {', '.join(near) or 'none'}."
        ) from error
    except ValueError as error:
        hint = _nearest_configs(source)
        raise InputError(hint or f"data.source={source!r}: {one_line(error)}") from error
    except Exception as error:  # As in `_download`.
        raise InputError(f"data.source={source!r}: {one_line(error)}") from error


@contextlib.contextmanager
def _own_features(source: str) -> Iterator[None]:
    """In the block, TFDS imports no class that a prepared folder names, unless it is its own.

    To build a feature it imports whatever module stands in features.json, and so would run its
    code; it looks for such folders by name, too.
    """
    import tensorflow_datasets as tfds

    features: Any = tfds.features.FeatureConnector
    find = features.__dict__["cls_from_name"]

    def find_own(cls: Any, name: str) -> Any:
        require(
            name.startswith("tensorflow_datasets."),
            f"data.source={source!r}: its features.json names the class {name!r}, which is not of"
            " TFDS: its code would be run. Prepare the data again with features of TFDS.",
        )
        return find.__func__(cls, name)

    features.cls_from_name = classmethod(find_own)
    try:
        yield
    finally:
        features.cls_from_name = find


def _nearest_configs(source: str) -> str | None:
    """What to say where a TFDS name is right and its config is not; TFDS's list comes out empty."""
    import tensorflow_datasets as tfds

    name, _, config = source.partition("/")
    try:
        known = list(tfds.builder_cls(name).builder_configs)
    except Exception:  # It is something else; the first error tells.
        return None
    if not config or config.partition(":")[0].partition("/")[0] in known:
        return None
    near = difflib.get_close_matches(config, known, n=5, cutoff=0.4) or known[:5]
    return (
        f"data.source={source!r}: {name} has no config {config!r}; nearest of its {len(known)}:"
        f" {', '.join(near)}."
    )


def _download(builder: "tfds.core.DatasetBuilder") -> None:
    try:
        with downloads.ending():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # Code of a data set, or the network: nothing of ours.
        raise InputError(
            f"TFDS could not prepare {builder.info.full_name}: {one_line(error)}"
        ) from error


def _read(builder: "tfds.core.DatasetBuilder", split: str, cfg: DataConfig) -> Documents:
    name, text_field = builder.info.full_name, cfg.text_field
    try:
        records = read_split(builder, split)
    except NotImplementedError as error:
        raise InputError(
            f"{name} lies prepared in {builder.data_dir} in a format that only TensorFlow reads;"
            " `pip install tensorflow apache-beam mlcroissant` (an environment of its own will do)"
            " and `tfds convert_format --out_file_format=array_record"
            f" --dataset_version_dir={builder.data_dir}` add one that is read without it."
        ) from error
    except (KeyError, ValueError) as error:
        raise unknown("TFDS split", split, builder.info.splits) from error
    require(len(records) > 0, f"{name}: split {split!r} is empty.")
    found = Documents(
        records, text_field, folder=str(builder.data_dir), skip_damaged=cfg.damaged == "skip"
    )
    first = next((raw for raw in found if raw is not None), b"")
    kind = type(first).__name__
    require(kind == "bytes", f"{name}: field {text_field!r} holds {kind}, not text.")
    return found


def _hold_out(source: Documents, name: str) -> tuple[Documents, Documents]:
    # A damaged one is counted, as an empty one is, on the side where that hash falls.
    each = (documents.content_hash(raw or b"") for raw in source)
    hashes = np.fromiter(each, np.uint64, len(source))
    bound = np.uint64(documents.heldout_below(map(int, hashes), name))
    train, heldout = np.flatnonzero(hashes >= bound), np.flatnonzero(hashes < bound)
    return replace(source, indices=train), replace(source, indices=heldout)
