"""Documents in a column of a table: Parquet, and the Arrow streams of Hugging Face datasets."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polycom_jax._errors import InputError
from polycom_jax.data.compressed import arrow_damage
from polycom_jax.data.files import printable
from polycom_jax.data.rows import Reading, Row, damaged_row

_BATCH_ROWS = 256


def parquet_rows(path: Path, reading: Reading, first: int, last: int | None) -> Iterator[Row]:
    """The documents of these rows of a Parquet file; groups of rows outside are not read."""
    with _parquet(path) as table:
        _check_column(path, table.schema_arrow, reading)
        end = 0
        for group in range(table.num_row_groups):
            begin, end = end, end + table.metadata.row_group(group).num_rows
            if end <= first or (last is not None and begin >= last):
                continue
            batches = table.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=[reading.text_field]
            )
            yield from _within(_numbered(batches, begin), path, reading, first, last)


def parquet_sizes(path: Path, reading: Reading) -> Iterator[tuple[int, int]]:
    """The row behind each group of rows, and the group's bytes."""
    with _parquet(path) as table:
        end = 0
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            end += about.num_rows
            yield end, about.total_byte_size


def check_parquet(path: Path, reading: Reading) -> None:
    """Raises `Damaged` or `InputError` for a file that is no Parquet, or without the column."""
    with _parquet(path) as table:
        _check_column(path, table.schema_arrow, reading)


def arrow_rows(path: Path, reading: Reading, first: int, last: int | None) -> Iterator[Row]:
    """The documents of these rows of an Arrow stream."""
    with _arrow(path) as stream:
        _check_column(path, stream.schema, reading)
        batches = (batch.select([reading.text_field]) for batch in stream)
        yield from _within(_numbered(batches, 0), path, reading, first, last)


def arrow_sizes(path: Path, reading: Reading) -> Iterator[tuple[int, int]]:
    """The row behind each record batch, and the batch's bytes."""
    with _arrow(path) as stream:
        end = 0
        for batch in stream:
            end += batch.num_rows
            yield end, batch.nbytes


def check_arrow(path: Path, reading: Reading) -> None:
    """As `check_parquet`, of an Arrow stream."""
    with _arrow(path) as stream:
        _check_column(path, stream.schema, reading)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with arrow_damage(), path.open("rb") as file, pq.ParquetFile(file) as table:
        yield table


@contextlib.contextmanager
def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with arrow_damage(), path.open("rb") as file, pa.ipc.open_stream(file) as stream:
        yield stream


def _check_column(path: Path, schema: Any, reading: Reading) -> None:
    import pyarrow as pa

    name = reading.text_field
    if name not in schema.names:
        raise InputError(
            f"{path} has no column {name!r}; its columns: {', '.join(schema.names)}. Name the one"
            " with the text by data.text_field."
        )
    if schema.names.count(name) > 1:
        raise InputError(
            f"{path} has {schema.names.count(name)} columns {name!r}, and which is meant is not"
            " known; rename all but one."
        )
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_text(kind) for is_text in texts):
        raise InputError(f"{path}: column {name!r} holds {kind}, not text.")


def _numbered(batches: Any, begin: int) -> Iterator[tuple[int, str | bytes | None]]:
    for batch in batches:
        yield from enumerate(_values(batch.column(0)), start=begin)
        begin += batch.num_rows


def _values(column: Any) -> list[str | bytes | None]:
    """The texts; as bytes where one is not UTF-8, which Arrow calls text all the same."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


def _within(
    found: Iterator[tuple[int, str | bytes | None]],
    path: Path,
    reading: Reading,
    first: int,
    last: int | None,
) -> Iterator[Row]:
    name = printable(path.name)
    for row, text in found:
        if last is not None and row >= last:
            return
        if row < first:
            continue
        if text is None:
            where = f"{path}, row {row + 1}"
            error = InputError(f"{where}: column {reading.text_field!r} is null; expected text.")
            yield damaged_row(where, error, reading)
        else:
            raw = text.encode() if isinstance(text, str) else text
            yield f"{name}, row {row + 1}", raw
