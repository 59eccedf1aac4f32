"""Features of one modality in a table: a row of item id and vector for every item that has one."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import InputError
from ..catalog import check_finite, feature_chunk_rows
from ..config import SourceConfig
from ..external import scratch
from .table_file import TableFile, id_column, require_column

FIRST_ROWS = 64  # feature rows that tell how wide they are


def feature_ids(modality: str, table: TableFile, item_column: str) -> pa.Array:
    """Reads the raw ids of the items in a table of features, one a row.

    Raises:
        InputError: the column of items is missing, or an item occurs twice.
    """
    require_column(table.path, table.column_names, item_column, "source.item_column")
    ids = id_column(table.path, table.column(item_column), item_column, "source.item_column")
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.field(0).filter(pc.greater(counts.field(1), 1))[0].as_py()
        raise InputError(f"modality {modality!r}: {table.path} has several rows for item {repeated!r}; keep one")
    return ids


def read_features(
    modality: str, table: TableFile, index: np.ndarray, num_items: int, config: SourceConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a table of features.

    Args:
        modality: Its name, for messages.
        table: The table.
        index: integers [rows of the table], the item of each row.
        num_items: Items of the catalog.
        config: `vector_column`.

    Returns:
        Rows [num_items, dim], float16 or float32, in a scratch file, and present [num_items] bool.

    Raises:
        InputError: vectors are missing, are no numbers, differ in length, or hold a value that is not finite.
    """
    path, column = table.path, config.vector_column
    require_column(path, table.column_names, column, "source.vector_column")
    kind = table.schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise InputError(f"modality {modality!r}: column {column!r} of {path} holds {kind}, expected lists of numbers")
    dtype = np.float16 if pa.types.is_float16(kind.value_type) else np.float32
    rows, present = np.empty((0, 0), dtype), np.zeros(num_items, bool)
    _, first = next(table.pieces([column], FIRST_ROWS), (0, pa.table({column: pa.nulls(0, kind)})))
    widest = pc.max(pc.list_value_length(first[column])).as_py() or 0
    for start, piece in table.pieces([column], feature_chunk_rows(widest * np.dtype(dtype).itemsize)):
        vectors = piece[column].combine_chunks()
        here = ~vectors.is_null().to_numpy(zero_copy_only=False)
        lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)[here]
        if len(lengths) and not rows.size:
            rows = scratch(dtype, num_items, int(lengths[0]))
        wrong = np.flatnonzero(lengths != rows.shape[1])
        if len(wrong):
            row = start + int(np.flatnonzero(here)[wrong[0]])
            raise InputError(
                f"modality {modality!r}: row {row} of {path} has {int(lengths[wrong[0]])} numbers, "
                f"expected {rows.shape[1]} as in the first row"
            )
        values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, rows.shape[1] or 1).astype(dtype)
        whole = np.zeros((len(here), rows.shape[1]), dtype)
        whole[here] = values
        check_finite(modality, str(path), whole, here, start)
        target = index[start : start + len(here)][here]
        rows[target], present[target] = values, True
    if not rows.size:
        raise InputError(f"modality {modality!r}: {path} has no vectors; remove it from source.modalities")
    return rows, present
