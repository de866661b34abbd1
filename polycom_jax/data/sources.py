"""From a config's `source` to what reads its documents: files, or a data set of TFDS."""

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.data import downloads, local
from polycom_jax.data.cache import Report, digest, locked
from polycom_jax.data.config import DataConfig
from polycom_jax.data.files import KINDS, PACKED
from polycom_jax.data.heldout import HELDOUT_SHARE, HELDOUT_SPLITS
from polycom_jax.data.reader import Source
from polycom_jax.data.records import TfdsSplits, one_line, own_features, shared

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_GLOB_SIGNS = frozenset("*?[")
_TFDS_INFO = "dataset_info.json"


def resolve(cfg: DataConfig, cache: Path, report: Report) -> Source:
    """The source that `cfg.text` names: "stdlib", local files, or TFDS.

    Local files are read once here, for their fingerprint; a TFDS name is downloaded and prepared
    here if it is not yet (TFDS shows its own bars then).

    Raises:
        InputError: no such file or name, or nothing usable in it.
    """
    if cfg.text == "stdlib":
        return local.stdlib(cfg, cache, report)
    if names_files(cfg.text):
        return local.text(cfg, cache)
    return _from_tfds(cfg, cache, report)


def names_files(source: str) -> bool:
    """Whether a source is text files, here or in a bucket, and neither "stdlib" nor of TFDS."""
    path = os.path.expanduser(source)
    if source == "stdlib" or _is_tfds_folder(source):
        return False
    marked = source.startswith((".", "/", "~")) or not _GLOB_SIGNS.isdisjoint(source)
    suffixes = (*KINDS, *PACKED)
    lower = source.lower()
    return marked or "://" in source or os.path.lexists(path) or lower.endswith(suffixes)


def _is_tfds_folder(source: str) -> bool:
    """Whether TFDS prepared it; a Hugging Face dataset has a file of the same name, and another."""
    if storage.is_remote(source):
        return storage.is_file(storage.place(source) / "features.json")
    folder = os.path.expanduser(source)
    own, other = (os.path.isfile(os.path.join(folder, f)) for f in (_TFDS_INFO, "state.json"))
    return own and not other


def _from_tfds(cfg: DataConfig, cache: Path, report: Report) -> Source:
    builder = find_builder(cfg.text)
    name = builder.info.full_name
    prepare_builder(builder, cache, timeout_s=cfg.lock_timeout_s, report=report)
    features: Any = builder.info.features
    require(
        cfg.text_field in features,
        f"{name} has no field {cfg.text_field!r}; its fields: {', '.join(features)}."
        " Name the one with the text by data.text_field.",
    )
    splits = builder.info.splits
    apart = (s for s in HELDOUT_SPLITS if s in splits and not shared(splits, s, cfg.train_split))
    heldout = cfg.heldout or next(apart, None)
    both = shared(splits, heldout, cfg.train_split) if heldout else ""
    require(
        not both,
        f"data.heldout={heldout!r} and data.train_split={cfg.train_split!r} share {both}, which"
        " would be trained on and evaluated on; take it out of one of the two.",
    )
    about = [
        (split, info.num_examples, info.num_bytes, info.shard_lengths)
        for split, info in sorted(splits.items())
    ]
    choice = (cfg.text_field, cfg.train_split, heldout, HELDOUT_SHARE)
    reader = TfdsSplits(
        str(builder.data_dir),
        (
            ((cfg.train_split, "train"), (heldout, "heldout"))
            if heldout
            else ((cfg.train_split, "by hash"),)
        ),
        cfg.text_field,
        skip_damaged=cfg.damaged == "skip",
    )

    def open_() -> TfdsSplits:
        reader.check(name)
        if not heldout:
            report(f"Holding {HELDOUT_SHARE:.0%} of {cfg.train_split} out by content hash")
        return reader

    return Source(name, digest("tfds", name, about, choice), open_)


def prepare_builder(
    builder: "tfds.core.DatasetBuilder", cache: Path, *, timeout_s: float, report: Report
) -> None:
    """Downloads a data set of TFDS and writes it as ArrayRecord, where that is not done yet.

    Behind it the builder knows the splits, whoever has prepared them.

    Raises:
        InputError: TFDS cannot, or another process has been at it for too long.
    """
    lock = cache / "tfds" / f"{digest(str(builder.data_dir))}.lock"
    with locked(lock, timeout_s=timeout_s, report=report):
        if not builder.is_prepared():
            report(f"Preparing {builder.info.full_name} with TFDS in {builder.data_dir}")
            _download(builder)
        elif not builder.info.initialized:  # another process has prepared it since it was found
            builder.info.read_from_directory(builder.data_dir)


def find_builder(source: str, field: str = "data.source") -> "tfds.core.DatasetBuilder":
    """The data set of that TFDS name, or in a folder that TFDS prepared.

    Args:
        source: the name or folder.
        field: what messages call it.

    Raises:
        InputError: there is none, or TFDS cannot make it.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # Registers the older corpora, c4 for one; else not found.

    from polycom_jax.data import builders

    try:
        # Names with a namespace are looked up on servers.
        with builders.quiet(), downloads.ending(), own_features(source):
            if _is_tfds_folder(source):
                return tfds.builder_from_directory(os.path.expanduser(source))
            return tfds.builder(source)
    except InputError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(source.split("/")[0], known, n=3)
        raise InputError(
            f"{field}={source!r} is neither a file nor a TFDS name."
            f" Nearest names: {', '.join(near) or 'none'}."
        ) from error
    except ValueError as error:
        hint = _nearest_configs(source, field)
        raise InputError(hint or f"{field}={source!r}: {one_line(error)}") from error
    except Exception as error:  # As in `_download`.
        raise InputError(f"{field}={source!r}: {one_line(error)}") from error


def _nearest_configs(source: str, field: str) -> str | None:
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
        f"{field}={source!r}: {name} has no config {config!r}; nearest of its {len(known)}:"
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
