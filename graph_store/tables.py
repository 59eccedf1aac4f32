"""Sources that are tables of interactions: `parquet` (also CSV), whose features are tables too, and `mmrec`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from ..core.errors import InputError
from .catalog import SPLITS, Catalog, Pairs, check_finite
from .config import SourceConfig
from .sources import Source, id_column, read_table, require_column, unreadable
from .splits import split_interactions

_SPLIT_NAMES = {"train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "0": 0, "1": 1, "2": 2}


def load_parquet(source: Source) -> Catalog:
    """Interactions, optionally items, and features by item id; indices follow the order of the raw ids."""
    config = source.config
    user_column, item_column = config.user_column or "user", config.item_column or "item"
    name = config.interactions or source.first("interactions.parquet", "interactions.csv") or "interactions.parquet"
    path = source.file(name, "source.path and source.interactions")
    table = _interactions(path, [user_column, item_column])
    users = id_column(path, table, user_column, "source.user_column")
    items = id_column(path, table, item_column, "source.item_column")
    feature_files = {modality: source.file(file, f"source.modalities.{modality}") for modality, file in (config.modalities or {}).items()}
    feature_ids = {modality: _feature_ids(modality, file, item_column) for modality, file in feature_files.items()}
    listed = config.items or source.first("items.parquet", "items.csv")
    if listed:
        items_file = source.file(listed, "source.items")
        known = id_column(items_file, read_table(items_file, [item_column]), item_column, "source.item_column")
        item_ids, hint = sort_ids(known), f"which is not in {items_file}; add it there or drop the row"
    else:
        item_ids, hint = sort_ids(items, *feature_ids.values()), ""
    user_ids = sort_ids(users)
    user_index, item_index = _index(users, user_ids, path, ""), _index(items, item_ids, path, hint)
    return Catalog(
        user_ids,
        item_ids,
        split_table(path, table, user_index, item_index, config, config.split_column or "split"),
        {
            modality: _features(modality, file, _index(feature_ids[modality], item_ids, file, hint), len(item_ids), config)
            for modality, file in feature_files.items()
        },
    )


def mmrec_interactions(source: Source) -> tuple[Path, dict[str, Pairs]]:
    """The interactions of an MMRec .inter file: tab-separated userID, itemID (0, 1, ...) and x_label (0, 1, 2)."""
    config = source.config
    found = source.matching(".inter")
    if not config.interactions and len(found) != 1:
        what = f"found {', '.join(found)}" if found else "there is none"
        raise InputError(f"{config.path}: expected one .inter file, {what}; name it in source.interactions")
    path = source.file(config.interactions or found[0], "source.interactions")
    columns = [config.user_column or "userID", config.item_column or "itemID"]
    table = _interactions(path, columns)
    users, items = (
        _integers(path, column, id_column(path, table, column, setting))
        for column, setting in zip(columns, ("source.user_column", "source.item_column"))
    )
    return path, split_table(path, table, users, items, config, config.split_column or "x_label")


def split_table(
    path: Path, table: pa.Table, users: np.ndarray, items: np.ndarray, config: SourceConfig, split_column: str
) -> dict[str, Pairs]:
    """Splits a table's interactions by its split column or, where it has none, by `source.split`."""
    if config.split_column or split_column in table.column_names:
        require_column(path, table.column_names, split_column, "source.split_column")
        labels = _split_labels(path, split_column, table[split_column])
        return {name: (users[labels == label], items[labels == label]) for label, name in enumerate(SPLITS) if (labels == label).any()}
    return split_interactions(users, items, config, _timestamps(path, table, config))


def sort_ids(*columns: pa.Array) -> list[str]:
    """The distinct ids of all columns in order: by value where all are plain numbers, else as text."""
    ids = pc.unique(pa.chunked_array(list(columns), pa.string())).to_pylist()
    if all(name.isascii() and name.isdecimal() for name in ids):
        return sorted(ids, key=lambda name: (int(name), name))
    return sorted(ids)


def _interactions(path: Path, text_columns: list[str]) -> pa.Table:
    table = read_table(path, text_columns)
    if table.num_rows == 0:
        raise InputError(f"{path}: no interactions in it; the file is empty")
    return table


def _index(column: pa.Array, ids: list[str], path: Path, hint: str) -> np.ndarray:
    """Dense indices of a column of raw ids; `hint` says what is wrong with an id that is not in `ids`."""
    index = pc.index_in(column, value_set=pa.array(ids, pa.string()))
    if index.null_count:
        row = int(np.flatnonzero(index.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{path}, row {row}: names item {column[row].as_py()!r}, {hint} ({index.null_count} such rows)")
    return index.to_numpy().astype(np.int64)


def _integers(path: Path, column: str, ids: pa.Array) -> np.ndarray:
    wrong = ~pc.match_substring_regex(ids, r"^\d{1,18}$").to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{path}, row {row}: {column} is {ids[row].as_py()!r}, expected a number from 0")
    return ids.cast(pa.int64()).to_numpy()


def _split_labels(path: Path, column: str, values: pa.ChunkedArray) -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for every row."""
    texts = pc.utf8_lower(values.cast(pa.string()))
    position = pc.index_in(texts, value_set=pa.array(list(_SPLIT_NAMES)))
    if position.null_count:
        row = int(np.flatnonzero(position.is_null().to_numpy())[0])
        raise InputError(f"{path}, row {row}: {column} is {values[row].as_py()!r}, expected train, validation or test (or 0, 1 or 2)")
    return np.array(list(_SPLIT_NAMES.values()))[position.to_numpy()]


def _timestamps(path: Path, table: pa.Table, config: SourceConfig) -> np.ndarray | None:
    column = config.timestamp_column or "timestamp"
    if config.timestamp_column:
        require_column(path, table.column_names, column, "source.timestamp_column")
    if config.split != "time" or column not in table.column_names:
        return None
    values = table[column]
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise InputError(f"{path}: column {column!r} holds {values.type}, expected numbers or times")
    missing = values.is_null(nan_is_null=True).to_numpy()
    if missing.any():
        raise InputError(f"{path}, row {np.flatnonzero(missing)[0]}: no {column}; fill it in or set source.split=random")
    return values.to_numpy()


def _feature_ids(modality: str, path: Path, item_column: str) -> pa.Array:
    try:
        dataset = pyarrow.dataset.dataset(path, format="parquet")
        require_column(path, dataset.schema.names, item_column, "source.item_column")
        ids = id_column(path, dataset.to_table(columns=[item_column]), item_column, "source.item_column")
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    repeated = pc.filter(pc.value_counts(ids).field(0), pc.greater(pc.value_counts(ids).field(1), 1))
    if len(repeated):
        raise InputError(f"modality {modality!r}: {path} has several rows for item {repeated[0].as_py()!r}; keep one")
    return ids


def _features(modality: str, path: Path, index: np.ndarray, num_items: int, config: SourceConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows [num_items, dim] and present [num_items] from a table of vectors; `index` is each table row's item."""
    column = config.vector_column
    dataset = pyarrow.dataset.dataset(path, format="parquet")
    require_column(path, dataset.schema.names, column, "source.vector_column")
    kind = dataset.schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise InputError(f"modality {modality!r}: column {column!r} of {path} holds {kind}, expected lists of numbers")
    dtype = np.float16 if pa.types.is_float16(kind.value_type) else np.float32
    rows, present, start = np.empty((0, 0), dtype), np.zeros(num_items, bool), 0
    try:
        for batch in dataset.to_batches(columns=[column]):
            vectors = batch[column]
            here = ~vectors.is_null().to_numpy(zero_copy_only=False)
            lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)[here]
            if len(lengths) and not rows.size:
                rows = np.zeros((num_items, int(lengths[0])), dtype)
            wrong = np.flatnonzero(lengths != rows.shape[1])
            if len(wrong):
                row = start + int(np.flatnonzero(here)[wrong[0]])
                raise InputError(
                    f"modality {modality!r}: row {row} of {path} has {int(lengths[wrong[0]])} numbers, expected "
                    f"{rows.shape[1]} as in the first row"
                )
            values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, rows.shape[1] or 1).astype(dtype)
            whole = np.zeros((len(here), rows.shape[1]), dtype)
            whole[here] = values
            check_finite(modality, str(path), whole, here, start)
            target = index[start : start + len(here)][here]
            rows[target], present[target] = values, True
            start += len(here)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    if not rows.size:
        raise InputError(f"modality {modality!r}: {path} has no vectors; remove it from source.modalities")
    return rows, present
