"""Files of a raw catalog: found, fetched if remote, and opened with messages a person can act on."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

from ..core.errors import InputError
from ..core.storage import filesystem, is_local, join, local_path
from .catalog import CHUNK_ROWS, check_finite, check_rows
from .config import SourceConfig

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}


def check_folder(config: SourceConfig) -> None:
    """Raises InputError where the folder of the raw catalog is not there."""
    if config.path is not None:
        fs, path = filesystem(config.path)
        if not fs.exists(path):
            raise InputError(f"source.path={config.path}: no such folder")


class Source:
    """The folder of a raw catalog, local or remote.

    Args:
        config: `path` and the names of files in it.
        cache: A local folder for remote files, kept as long as their arrays are loaded from it.
    """

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        assert config.path is not None
        self.config, self._folder, self._cache = config, config.path, cache
        check_folder(config)

    def file(self, name: str, setting: str = "source.path") -> Path:
        """The local copy of a file (or folder of parts) that must be there; `setting` is what to check if not."""
        url = self._url(name)
        if not self._exists(url):
            raise InputError(f"{url}: no such file; check {setting}")
        if is_local(url):
            return local_path(url)
        fs, path = filesystem(url)
        target = self._cache / path.strip("/").replace("/", "_")
        fs.get(path, str(target), recursive=fs.isdir(path))
        return target

    def first(self, *names: str) -> str | None:
        """The first of the names that exists."""
        return next((name for name in names if self._exists(self._url(name))), None)

    def matching(self, ending: str) -> list[str]:
        """Names in the folder that end so, in order."""
        fs, path = filesystem(self._folder)
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
        return sorted(name for name in names if name.endswith(ending))

    def _url(self, name: str) -> str:
        return name if name.startswith("/") or "://" in name else join(self._folder, name)

    def _exists(self, url: str) -> bool:
        fs, path = filesystem(url)
        return fs.exists(path)


def load_npy(modality: str, path: Path) -> np.ndarray:
    """A memory-mapped .npy file of numbers; its shape is checked by `check_npy`."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"modality {modality!r}: {path} is not a readable .npy file of numbers ({error})") from error


def check_npy(modality: str, path: Path, rows: np.ndarray, num_items: int) -> None:
    """Checks the shape and, chunk by chunk, the values of a feature file."""
    check_rows(modality, str(path), rows, num_items)
    for start in range(0, num_items, CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        check_finite(modality, str(path), chunk, np.ones(len(chunk), bool), start)


class TableFile:
    """A Parquet file, a folder of Parquet files, or a file of comma- or tab-separated values, read in pieces.

    Args:
        path: .csv, .tsv, .inter, anything else is Parquet.
        text_columns: Columns that are text in CSV whatever they look like ("007" is not 7).
    """

    def __init__(self, path: Path, text_columns: Sequence[str] = ()) -> None:
        self.path = path
        with self._reading():
            self._dataset = pyarrow.dataset.dataset(path, format=_format(path, text_columns))
            self.column_names, self.schema = self._dataset.schema.names, self._dataset.schema

    def pieces(self, columns: Sequence[str], rows: int) -> Iterator[tuple[int, pa.Table]]:
        """Some columns, about `rows` rows (or one batch of the file) at a time, each with the number of its first row.

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
        """One column, whole."""
        with self._reading():
            return self._dataset.to_table(columns=[name])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.path, error) from error


_BATCH_ROWS = 1 << 17
_READAHEAD = {"batch_readahead": 1, "fragment_readahead": 1}
_CSV_BLOCK = 64 << 20  # bytes; a column's type is read off the first


def _format(path: Path, text_columns: Sequence[str]) -> Any:
    if path.suffix not in _DELIMITERS:
        # Buffers made ahead would stay until the file is read: the whole of a wide feature column.
        options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
        return pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=options)
    return pyarrow.dataset.CsvFileFormat(
        parse_options=pyarrow.csv.ParseOptions(delimiter=_DELIMITERS[path.suffix]),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
        read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK),
    )


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a file that is damaged or of another format."""
    return InputError(f"{path}: cannot be read ({error}); it may be truncated or of another format: write it again")


def require_column(path: Path, names: list[str], column: str, setting: str) -> None:
    """Checks that a table has a column."""
    if column not in names:
        raise InputError(f"{path}: no column {column!r}, it has {', '.join(names)}; name the right one in {setting}")


def id_column(path: Path, table: pa.Table, column: str, setting: str, first_row: int = 0) -> pa.Array:
    """A column of raw ids as strings, without gaps; `first_row` is the number of the table's first row, for the message."""
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
