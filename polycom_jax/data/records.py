"""Records of a prepared data set: reading them, and what is done with damaged ones."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polycom_jax._errors import InputError

_READ_AHEAD = 256


class Records(Protocol):
    """The part of a TFDS data source that is used here."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[int]) -> Sequence[dict[str, Any]]: ...


@dataclass(frozen=True, eq=False)
class Documents:
    """Raw documents with random access: a TFDS data source, or the part of it at `indices`."""

    records: Records
    text_field: str
    folder: str
    """Where they lie prepared, for messages."""
    indices: np.ndarray | None = None
    place_field: str | None = None
    """The field that tells where a document stands, where there is one."""
    skip_damaged: bool = False
    left_out: int = 0
    """Damaged records that did not get so far."""

    def __len__(self) -> int:
        return len(self.records) if self.indices is None else len(self.indices)

    def __iter__(self) -> Iterator[bytes | None]:
        yield from self.every(1)

    def every(self, stride: int) -> Iterator[bytes | None]:
        """Every `stride`-th document from the first on; None for a damaged one that is skipped.

        Raises:
            InputError: a record is damaged and is not to be skipped.
        """
        for start in range(0, len(self), _READ_AHEAD * stride):
            wanted = range(start, min(start + _READ_AHEAD * stride, len(self)), stride)
            if self.indices is not None:
                wanted = self.indices[wanted].tolist()
            yield from self._read(list(wanted))

    def _read(self, wanted: list[int]) -> list[bytes | None]:
        try:
            return [record[self.text_field] for record in self.records.__getitems__(wanted)]
        except (RuntimeError, OSError, ValueError, IndexError) as error:  # array_record's
            if len(wanted) > 1:  # One of them; each tells for itself.
                return [one for index in wanted for one in self._read([index])]
            if self.skip_damaged:
                return [None]
            raise InputError(
                f"Record {wanted[0] + 1} of the data in {self.folder} cannot be read"
                f" ({one_line(error)}); delete that folder to have them prepared again, or leave"
                " such records out with data.damaged='skip'."
            ) from error

    def where(self, index: int) -> str:
        """Names a document for a message: where it stands, else its number."""
        if self.place_field is None:
            return f"Document {index + 1}"
        place = index if self.indices is None else int(self.indices[index])
        return self.records.__getitems__([place])[0][self.place_field].decode()

    def mean_bytes(self, most: int) -> float:
        """Mean length of at most 256 documents, evenly spread, none counted as more than `most`."""
        stride = max(1, len(self) // 256)
        return float(np.mean([min(len(raw or b""), most) for raw in self.every(stride)]))


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
