"""What is read of a source, row by row."""

from dataclasses import dataclass

from polycom_jax._errors import InputError

Row = tuple[str, bytes | None]
"""Where a document stands, and its bytes exactly as they are there; None: damaged, left out."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        text_field: the field of a JSON line, or the column of a table, that holds the text.
        document_bytes: a .txt file is cut at line ends once it has so many.
        skip_damaged: what is damaged is left out; else it is an error.
    """

    text_field: str = "text"
    document_bytes: int = 65_536
    skip_damaged: bool = False


def damaged_row(where: str, error: InputError, reading: Reading) -> Row:
    """What stands for something damaged, or the error itself."""
    if reading.skip_damaged:
        return where, None
    raise error
