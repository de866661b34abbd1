"""Records of data sets that TFDS prepared: read by rows, and what is done with damaged ones."""

import contextlib
import functools
import itertools
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polycom_jax._errors import InputError, require, unknown
from polycom_jax.data.reader import Origin, Side
from polycom_jax.data.rows import Row

_READ_AHEAD = 256


class Records(Protocol):
    """The part of a TFDS data source that is used here."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[int]) -> Sequence[dict[str, Any]]: ...


@dataclass(frozen=True)
class TfdsSplits:
    """Reads splits of a prepared data set; see `Reader`.

    Attributes:
        folder: where it lies prepared.
        splits: TFDS split and side.
        text_field: the field that holds the text.
        place_field: the field that tells where a document stands, where there is one.
        skip_damaged: damaged records are left out; else they are an error.
    """

    folder: str
    splits: tuple[tuple[str, Side], ...]
    text_field: str
    place_field: str | None = None
    skip_damaged: bool = False

    @property
    def origins(self) -> Sequence[Origin]:
        """The splits."""
        return [Origin(split, self._bytes(split), side) for split, side in self.splits]

    def rows(self, origin: int, first: int = 0, last: int | None = None) -> Iterator[Row]:
        """See `Reader`."""
        records = self._records(self.splits[origin][0])
        end = len(records) if last is None else last
        for start in range(first, end, _READ_AHEAD):
            yield from self._read(records, list(range(start, min(start + _READ_AHEAD, end))))

    def cuts(self, origin: int, most: int) -> list[int]:
        """See `Reader`; in parts of equally many records."""
        count = len(self._records(self.splits[origin][0]))
        parts = min(count, -(-self.origins[origin].size // most))
        return [count * part // parts for part in range(1, parts)]

    def check(self, name: str) -> None:
        """Raises `InputError` for a split that is not there, is empty, or holds no text."""
        open_split.cache_clear()  # the folder may have been prepared anew
        open_builder.cache_clear()
        for split, _ in self.splits:
            try:
                records = self._records(split)
            except InputError:
                raise
            except (KeyError, ValueError) as error:
                raise unknown("TFDS split", split, open_builder(self.folder).info.splits) from error
            require(len(records) > 0, f"{name}: split {split!r} is empty.")
            first = next((raw for _, raw in self._read(records, [0]) if raw is not None), b"")
            kind = type(first).__name__
            require(kind == "bytes", f"{name}: field {self.text_field!r} holds {kind}, not text.")

    def _records(self, split: str) -> Records:
        return open_split(self.folder, split)

    def _bytes(self, split: str) -> int:
        """By the mean of some records, evenly spread."""
        records = self._records(split)
        some = range(0, len(records), max(1, len(records) // _READ_AHEAD))
        sizes = [len(raw or b"") for _, raw in self._read(records, list(some))]
        return round(len(records) * float(np.mean(sizes)))

    def _read(self, records: Records, wanted: list[int]) -> list[Row]:
        try:
            found = records.__getitems__(wanted)
            return [self._row(index, one) for index, one in zip(wanted, found, strict=True)]
        except (RuntimeError, OSError, ValueError, IndexError) as error:  # array_record's
            if len(wanted) > 1:  # One of them; each tells for itself.
                return [one for index in wanted for one in self._read(records, [index])]
            if self.skip_damaged:
                return [(f"Document {wanted[0] + 1}", None)]
            raise InputError(
                f"Record {wanted[0] + 1} of the data in {self.folder} cannot be read"
                f" ({one_line(error)}); delete that folder to have them prepared again, or leave"
                " such records out with data.damaged='skip'."
            ) from error

    def _row(self, index: int, record: dict[str, Any]) -> Row:
        place = self.place_field
        name = f"Document {index + 1}" if place is None else record[place].decode()
        return name, record[self.text_field]


def shared(splits: Mapping[str, Any], one: str, other: str) -> str:
    """Records that both splits have, as TFDS writes them; "" where there are none.

    Also where one of the two names no split: what reads it says so.
    """
    import tensorflow_datasets as tfds

    try:
        parts = [tfds.core.ReadInstruction.from_spec(s).to_absolute(splits) for s in (one, other)]
    except (KeyError, ValueError):
        return ""
    for a, b in itertools.product(*parts):
        first = max(a.from_ or 0, b.from_ or 0)
        last = min(splits[a.splitname].num_examples if e.to is None else e.to for e in (a, b))
        if a.splitname == b.splitname and first < last:
            return f"{a.splitname}[{first}:{last}]"
    return ""


@functools.cache
def open_builder(folder: str) -> Any:
    """The builder of a prepared data set, from its folder alone."""
    import tensorflow_datasets as tfds

    from polycom_jax.data import builders

    with builders.quiet(), own_features(folder):
        return tfds.builder_from_directory(os.path.expanduser(folder))


@functools.lru_cache(maxsize=8)
def open_split(folder: str, split: str) -> Records:
    """The records of a split of a prepared data set."""
    builder = open_builder(folder)
    try:
        return builder.as_data_source(split)
    except NotImplementedError as error:
        raise InputError(
            f"{builder.info.full_name} lies prepared in {folder} in a format that only TensorFlow"
            " reads; `pip install tensorflow apache-beam mlcroissant` (an environment of its own"
            " will do) and `tfds convert_format --out_file_format=array_record"
            f" --dataset_version_dir={folder}` add one that is read without it."
        ) from error


@contextlib.contextmanager
def own_features(source: str) -> Iterator[None]:
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


def one_line(error: Exception) -> str:
    """What went wrong in code that is not ours, in a line."""
    missing = _missing_module(error)
    if missing:
        return f"it needs the package {missing}, which is not installed; `pip install {missing}`."
    return textwrap.shorten(f"{type(error).__name__}: {error}", 400, placeholder=" ...")


def _missing_module(error: BaseException | None) -> str | None:
    """The package that was not found: TFDS imports some late, and wraps what that raises."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0].replace("_", "-")
        error = error.__cause__
    return None
