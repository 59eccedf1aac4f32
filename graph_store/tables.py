"""Sources that are tables of interactions: `parquet` (also CSV), whose features are tables too, and `mmrec`.

Tables are read in pieces, and what is indexed goes to scratch files: in memory are the raw ids, and one piece.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import InputError
from .catalog import SPLITS, Catalog, Pairs, Unsplit, check_finite, feature_chunk_rows
from .config import SourceConfig
from .external import Spool, scratch
from .sources import Source, TableFile, id_column, require_column

_SPLIT_NAMES = {"train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "0": 0, "1": 1, "2": 2}
ROW_BYTES = 256  # of memory for a row of a table while its ids are looked up
FIRST_ROWS = 64  # feature rows that tell how wide they are

Indexer = Callable[[pa.Array, int], np.ndarray]  # raw ids, number of the first one's row -> dense indices


def load_parquet(source: Source) -> Catalog:
    """Interactions, optionally items, and features by item id; indices follow the order of the raw ids."""
    config = source.config
    user_column, item_column = config.user_column or "user", config.item_column or "item"
    name = config.interactions or source.first("interactions.parquet", "interactions.csv") or "interactions.parquet"
    path = source.file(name, "source.path and source.interactions")
    table = TableFile(path, [user_column, item_column])
    files = {modality: source.file(file, f"source.modalities.{modality}") for modality, file in (config.modalities or {}).items()}
    feature_tables = {modality: TableFile(file) for modality, file in files.items()}
    feature_ids = {modality: _feature_ids(modality, features, item_column) for modality, features in feature_tables.items()}
    listed = config.items or source.first("items.parquet", "items.csv")
    if listed:
        items_file = source.file(listed, "source.items")
        known, hint = TableFile(items_file, [item_column]), f"which is not in {items_file}; add it there or drop the row"
        require_column(items_file, known.column_names, item_column, "source.item_column")
        item_ids = sort_ids(id_column(items_file, known.column(item_column), item_column, "source.item_column"))
        (user_ids,) = _distinct_ids(table, {user_column: "source.user_column"}, config)
    else:
        hint = ""
        user_ids, item_ids = _distinct_ids(table, {user_column: "source.user_column", item_column: "source.item_column"}, config)
        item_ids = sort_ids(item_ids, *feature_ids.values())
    user_ids = sort_ids(user_ids)
    pa.default_memory_pool().release_unused()

    def index_users(ids: pa.Array, first_row: int) -> np.ndarray:
        return _index(ids, user_ids, path, "", first_row)

    def index_items(ids: pa.Array, first_row: int) -> np.ndarray:
        return _index(ids, item_ids, path, hint, first_row)

    interactions = _interactions(table, (user_column, item_column), (index_users, index_items), config, "split")
    features = {
        modality: _features(modality, features, _index(feature_ids[modality], item_ids, files[modality], hint, 0), len(item_ids), config)
        for modality, features in feature_tables.items()
    }
    return Catalog(user_ids, item_ids, interactions, features)


def mmrec_interactions(source: Source) -> tuple[Path, dict[str, Pairs] | Unsplit]:
    """The interactions of an MMRec .inter file: tab-separated userID, itemID (0, 1, ...) and x_label (0, 1, 2)."""
    config = source.config
    found = source.matching(".inter")
    if not config.interactions and len(found) != 1:
        what = f"found {', '.join(found)}" if found else "there is none"
        raise InputError(f"{config.path}: expected one .inter file, {what}; name it in source.interactions")
    path = source.file(config.interactions or found[0], "source.interactions")
    columns = config.user_column or "userID", config.item_column or "itemID"

    def indexer(column: str) -> Indexer:
        return lambda ids, first_row: _integers(path, column, ids, first_row)

    indexers = indexer(columns[0]), indexer(columns[1])
    return path, _interactions(TableFile(path, columns), columns, indexers, config, "x_label")


def _interactions(
    table: TableFile, columns: tuple[str, str], indexers: tuple[Indexer, Indexer], config: SourceConfig, split_column: str
) -> dict[str, Pairs] | Unsplit:
    """A table's interactions by its split column or, where it has none, to be split by `source.split`; in scratch files."""
    split = config.split_column or (split_column if split_column in table.column_names else None)
    if split is not None:
        require_column(table.path, table.column_names, split, "source.split_column")
    time = None if split is not None else _time_column(table, config)
    for column, setting in zip(columns, ("source.user_column", "source.item_column")):
        require_column(table.path, table.column_names, column, setting)
    spools = [(Spool(np.int64), Spool(np.int64)) for _ in SPLITS]
    times, num_rows = None, 0
    for first, piece in table.pieces([*columns, *([split] if split else []), *([time] if time else [])], _piece_rows(config)):
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
    return {name: found for name, found in zip(SPLITS, pairs) if len(found[0])}


def _piece_rows(config: SourceConfig) -> int:
    return config.memory_mib * 2**20 // ROW_BYTES


def _distinct_ids(table: TableFile, columns: dict[str, str], config: SourceConfig) -> list[pa.Array]:
    """The distinct raw ids of some columns (given with their settings), in no order."""
    for column, setting in columns.items():
        require_column(table.path, table.column_names, column, setting)
    known = {column: pa.array([], pa.large_string()) for column in columns}
    for first, piece in table.pieces(list(columns), _piece_rows(config)):
        for column, setting in columns.items():
            new = pc.unique(id_column(table.path, piece, column, setting, first))
            known[column] = pc.unique(pa.concat_arrays([known[column], new]))
    return list(known.values())


def sort_ids(*columns: pa.Array) -> pa.Array:
    """The distinct ids of all columns in order: by value where all are plain numbers, else as text."""
    ids = pc.unique(pa.concat_arrays([column.cast(pa.large_string()) for column in columns]))
    if pc.all(pc.match_substring_regex(ids, "^[0-9]+$"), min_count=0).as_py():
        digits = pc.utf8_ltrim(ids, "0")
        keys = pa.table({"length": pc.binary_length(digits), "digits": digits, "id": ids})
        return ids.take(pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]))
    return ids.take(pc.sort_indices(ids))


def _index(column: pa.Array, ids: pa.Array, path: Path, hint: str, first_row: int) -> np.ndarray:
    """Dense indices of a column of raw ids; `hint` says what is wrong with an id that is not in `ids`."""
    index = pc.index_in(column, value_set=ids)
    if index.null_count:
        row = int(np.flatnonzero(index.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{path}, row {first_row + row}: names item {column[row].as_py()!r}, {hint} ({index.null_count} such rows)")
    return index.to_numpy()


def _integers(path: Path, column: str, ids: pa.Array, first_row: int) -> np.ndarray:
    wrong = ~pc.match_substring_regex(ids, r"^\d{1,18}$").to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{path}, row {first_row + row}: {column} is {ids[row].as_py()!r}, expected a number from 0")
    return ids.cast(pa.int64()).to_numpy()


def _split_labels(path: Path, column: str, values: pa.ChunkedArray, first_row: int) -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for every row."""
    texts = pc.utf8_lower(values.cast(pa.string()))
    position = pc.index_in(texts, value_set=pa.array(list(_SPLIT_NAMES)))
    if position.null_count:
        row = int(np.flatnonzero(position.is_null().to_numpy())[0])
        raise InputError(
            f"{path}, row {first_row + row}: {column} is {values[row].as_py()!r}, expected train, validation or test (or 0, 1 or 2)"
        )
    return np.array(list(_SPLIT_NAMES.values()))[position.to_numpy()]


def _time_column(table: TableFile, config: SourceConfig) -> str | None:
    """The column of times, where `source.split` needs it."""
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


def _times(path: Path, column: str, values: pa.ChunkedArray, first_row: int) -> np.ndarray:
    missing = values.is_null(nan_is_null=True).to_numpy()
    if missing.any():
        raise InputError(f"{path}, row {first_row + np.flatnonzero(missing)[0]}: no {column}; fill it in or set source.split=random")
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    return values.to_numpy()


def _feature_ids(modality: str, table: TableFile, item_column: str) -> pa.Array:
    require_column(table.path, table.column_names, item_column, "source.item_column")
    ids = id_column(table.path, table.column(item_column), item_column, "source.item_column")
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.field(0).filter(pc.greater(counts.field(1), 1))[0].as_py()
        raise InputError(f"modality {modality!r}: {table.path} has several rows for item {repeated!r}; keep one")
    return ids


def _features(modality: str, table: TableFile, index: np.ndarray, num_items: int, config: SourceConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows [num_items, dim], in a scratch file, and present [num_items]; `index` is each table row's item."""
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
