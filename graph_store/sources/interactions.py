"""Interactions in a table: users, items, and a split or times where there are such columns.

The table is read in pieces, and what is indexed goes to scratch files: in memory is one piece.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import InputError
from ..catalog import SPLITS, Pairs, Unsplit
from ..config import SourceConfig
from ..external import Spool
from .table_file import TableFile, id_column, piece_rows, require_column

_SPLIT_NAMES = {"train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "0": 0, "1": 1, "2": 2}

Indexer = Callable[[pa.Array, int], np.ndarray]  # raw ids [n], number of the first one's row -> dense indices, integers [n]


def read_interactions(
    table: TableFile, columns: tuple[str, str], indexers: tuple[Indexer, Indexer], config: SourceConfig, split_column: str
) -> dict[str, Pairs] | Unsplit:
    """Reads a table's interactions by its split column or, where it has none, to be split by `source.split`; they lie in scratch files.

    Args:
        table: The table.
        columns: Of user ids and of item ids.
        indexers: Dense indices of user ids and of item ids.
        config: Names of further columns, `split` and `memory_mib`.
        split_column: The format's column of splits, where `source.split_column` is not set; it may be absent.

    Raises:
        InputError: a column is missing, a value in it is not as expected, or there are no interactions.
    """
    split = config.split_column or (split_column if split_column in table.column_names else None)
    if split is not None:
        require_column(table.path, table.column_names, split, "source.split_column")
    time = None if split is not None else _time_column(table, config)
    for column, setting in zip(columns, ("source.user_column", "source.item_column")):
        require_column(table.path, table.column_names, column, setting)
    spools = [(Spool(np.int64), Spool(np.int64)) for _ in SPLITS]
    times, num_rows = None, 0
    for first, piece in table.pieces([*columns, *([split] if split else []), *([time] if time else [])], piece_rows(config)):
        ids = (id_column(table.path, piece, c, s, first) for c, s in zip(columns, ("source.user_column", "source.item_column")))
        users, items = (indexer(each, first) for indexer, each in zip(indexers, ids))
        labels = np.zeros(len(users), np.int64) if split is None else _split_labels(table.path, split, piece[split], first)
        for label, (of_users, of_items) in enumerate(spools):
            chosen = labels == label
            of_users.append(users[chosen])
            of_items.append(items[chosen])
        if time is not None:
            values = _times(table.path, time, piece[time], first)
            times = times or Spool(values.dtype)
            times.append(values)
        num_rows += len(users)
    if not num_rows:
        raise InputError(f"{table.path}: no interactions in it; the file is empty")
    pairs = [(of_users.array(), of_items.array()) for of_users, of_items in spools]
    if split is None:
        return Unsplit(pairs[0], config, None if times is None else times.array())
    return {name: of_split for name, of_split in zip(SPLITS, pairs) if len(of_split[0])}


def _split_labels(path: Path | str, column: str, values: pa.ChunkedArray, first_row: int) -> np.ndarray:
    """Reads 0 (train), 1 (validation) or 2 (test) for every row, int64 [n]."""
    texts = pc.utf8_lower(values.cast(pa.string()))
    position = pc.index_in(texts, value_set=pa.array(list(_SPLIT_NAMES)))
    if position.null_count:
        row = int(np.flatnonzero(position.is_null().to_numpy())[0])
        raise InputError(
            f"{path}, row {first_row + row}: {column} is {values[row].as_py()!r}, expected train, validation or test (or 0, 1 or 2)"
        )
    return np.array(list(_SPLIT_NAMES.values()))[position.to_numpy()]


def _time_column(table: TableFile, config: SourceConfig) -> str | None:
    """Finds the column of times, where `source.split` needs it."""
    column = config.timestamp_column or "timestamp"
    if config.timestamp_column:
        require_column(table.path, table.column_names, column, "source.timestamp_column")
    if config.split != "time":
        return None
    if column not in table.column_names:
        raise InputError(
            f"source.split=time: {table.path} has no timestamps; name their column in source.timestamp_column or set source.split=random"
        )
    kind = table.schema.field(column).type
    if not (pa.types.is_temporal(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"{table.path}: column {column!r} holds {kind}, expected numbers or times")
    return column


def _times(path: Path | str, column: str, values: pa.ChunkedArray, first_row: int) -> np.ndarray:
    missing = values.is_null(nan_is_null=True).to_numpy()
    if missing.any():
        raise InputError(f"{path}, row {first_row + np.flatnonzero(missing)[0]}: no {column}; fill it in or set source.split=random")
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    return values.to_numpy()
