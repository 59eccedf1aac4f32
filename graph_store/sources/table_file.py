"""Tables on disk: Parquet files and files of separated values, read in pieces, with messages a person can act on."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

from ...core.errors import InputError
from ...core.parquet import open_parquet
from ..config import SourceConfig

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}
ROW_BYTES = 256  # of memory for a row of a table while its ids are looked up
_BATCH_ROWS = 1 << 17
_READAHEAD = {"batch_readahead": 1, "fragment_readahead": 1}
_CSV_BLOCK = 64 << 20  # bytes; a column's type is read off the first


def piece_rows(config: SourceConfig) -> int:
    """Rows of a table that are indexed at a time, by `source.memory_mib`."""
    return config.memory_mib * 2**20 // ROW_BYTES


class TableFile:
    """A Parquet file, a folder of Parquet files, or a file of comma- or tab-separated values, read in pieces.

    Args:
        path: A .csv, .tsv or .inter file; anything else is Parquet, and may be named by its URL.
        text_columns: Columns that are text in CSV whatever they look like ("007" is not 7).
        is_parquet: Whether it is Parquet whatever its name says.

    Attributes:
        column_names: Columns in the file.
        schema: Their types.
    """

    def __init__(self, path: Path | str, text_columns: Sequence[str] = (), is_parquet: bool = False) -> None:
        self.path = path
        delimiter = None if is_parquet else _DELIMITERS.get(Path(path).suffix)
        with self._reading():
            self._dataset = open_parquet(str(path)) if delimiter is None else _open_csv(path, delimiter, text_columns)
            self.column_names, self.schema = self._dataset.schema.names, self._dataset.schema

    def pieces(self, columns: Sequence[str], rows: int) -> Iterator[tuple[int, pa.Table]]:
        """Reads some columns, about `rows` rows (or one batch of the file) at a time.

        Yields:
            The number of the piece's first row, and the piece.

        Raises:
            InputError: the file is damaged.
        """
        held: list[pa.RecordBatch] = []
        first = count = 0
        with self._reading():
            batches = self._dataset.to_batches(columns=list(columns), batch_size=min(rows, _BATCH_ROWS), **_READAHEAD)
            for batch in batches:
                held.append(batch)
                count += batch.num_rows
                if count >= rows:
                    yield first, pa.Table.from_batches(held)
                    first, count, held = first + count, 0, []
            if count:
                yield first, pa.Table.from_batches(held)

    def column(self, name: str) -> pa.Table:
        """Reads one column as a whole.

        Raises:
            InputError: the file is damaged.
        """
        with self._reading():
            return self._dataset.to_table(columns=[name])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.path, error) from error


def _open_csv(path: Path | str, delimiter: str, text_columns: Sequence[str]) -> pyarrow.dataset.Dataset:
    format = pyarrow.dataset.CsvFileFormat(
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
        read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK),
    )
    return pyarrow.dataset.dataset(path, format=format)


def unreadable(path: Path | str, error: Exception) -> InputError:
    """Makes the error for a file that is damaged or of another format."""
    return InputError(f"{path}: cannot be read ({error}); it may be truncated or of another format: write it again")


def require_column(path: Path | str, names: list[str], column: str, setting: str) -> None:
    """Checks that a table has a column.

    Args:
        path: The table, for the message.
        names: Columns that it has.
        column: The one it must have.
        setting: Where the column's name comes from, for the message.

    Raises:
        InputError: the table has no such column.
    """
    if column not in names:
        raise InputError(f"{path}: no column {column!r}, it has {', '.join(names)}; name the right one in {setting}")


def id_column(path: Path | str, table: pa.Table, column: str, setting: str, first_row: int = 0) -> pa.Array:
    """Takes a column of raw ids as strings [n].

    Args:
        path: The table's file or its URL, for messages.
        table: Some rows of it.
        column: The column.
        setting: Where the column's name comes from, for messages.
        first_row: Number of the first row in `table`, for messages.

    Raises:
        InputError: there is no such column, it holds neither integers nor strings, or an id is missing.
    """
    require_column(path, table.column_names, column, setting)
    values = table[column].combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # pyarrow < 17 on an empty column
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{path}: column {column!r} holds {kind}; ids must be integers or strings")
    ids = values.cast(pa.large_string())
    empty = pc.fill_null(pc.equal(ids, ""), True).to_numpy(zero_copy_only=False)
    if empty.any():
        row = first_row + int(np.flatnonzero(empty)[0])
        raise InputError(f"{path}, row {row}: no id in column {column!r}; fill it in or drop the row")
    return ids
