"""Raw ids of a catalog: collected from tables, sorted, and looked up."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import InputError
from ..config import SourceConfig
from .table_file import TableFile, id_column, piece_rows, require_column


def distinct_ids(table: TableFile, columns: dict[str, str], config: SourceConfig) -> list[pa.Array]:
    """Collects the distinct raw ids of some columns of a table, in no order.

    Args:
        table: The table.
        columns: The columns, each with the setting that its name comes from.
        config: `memory_mib`.

    Raises:
        InputError: a column is missing, or an id in it.
    """
    for column, setting in columns.items():
        require_column(table.path, table.column_names, column, setting)
    known = {column: pa.array([], pa.large_string()) for column in columns}
    for first, piece in table.pieces(list(columns), piece_rows(config)):
        for column, setting in columns.items():
            new = pc.unique(id_column(table.path, piece, column, setting, first))
            known[column] = pc.unique(pa.concat_arrays([known[column], new]))
    return list(known.values())


def sort_ids(*columns: pa.Array) -> pa.Array:
    """Sorts the distinct ids of all columns: by value where all are plain numbers, else as text."""
    ids = pc.unique(pa.concat_arrays([column.cast(pa.large_string()) for column in columns]))
    if pc.all(pc.match_substring_regex(ids, "^[0-9]+$"), min_count=0).as_py():
        digits = pc.utf8_ltrim(ids, "0")
        keys = pa.table({"length": pc.binary_length(digits), "digits": digits, "id": ids})
        return ids.take(pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]))
    return ids.take(pc.sort_indices(ids))


def index_ids(column: pa.Array, ids: pa.Array, path: Path, hint: str, first_row: int) -> np.ndarray:
    """Looks up the dense indices of a column of raw ids, int32 [n].

    Args:
        column: The raw ids.
        ids: All raw ids of the catalog; the position is the index.
        path: Where the column was read from, for the message.
        hint: What is wrong with an id that is not in `ids`, for the message.
        first_row: Number of the column's first row, for the message.

    Raises:
        InputError: an id is not in `ids`.
    """
    index = pc.index_in(column, value_set=ids)
    if index.null_count:
        row = int(np.flatnonzero(index.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{path}, row {first_row + row}: names item {column[row].as_py()!r}, {hint} ({index.null_count} such rows)")
    return index.to_numpy()


def check_overlap(ids: pa.Array, interacted: pa.Array, path: Path, interactions: Path) -> None:
    """Refuses a feature file none of whose items has an interaction: its ids are most likely written in another way.

    Args:
        ids: Raw item ids of the file.
        interacted: Raw item ids of all interactions.
        path, interactions: Where both were read from, for the message.

    Raises:
        InputError: there are ids in both, and none in common.
    """
    if len(ids) and len(interacted) and not pc.any(pc.is_in(ids, value_set=interacted)).as_py():
        raise InputError(
            f"{path}: none of its {len(ids)} items has an interaction in {interactions}: it names {ids[0].as_py()!r}, and the interactions "
            f"{interacted[0].as_py()!r}; write the ids in the same way in both, or, where these items are new indeed, list all items in "
            "items.parquet"
        )
