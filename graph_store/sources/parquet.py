"""`source.format=parquet`: interactions, optionally items, and features in tables: Parquet files, folders of them, or CSV.

Raw ids may be any integers or strings; dense indices follow their order. In memory are the raw ids, and one piece of a table.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from ..catalog import Catalog
from ..config import SourceConfig
from .feature_table import feature_ids, read_features
from .folder import SourceFolder, source_folder
from .interactions import read_interactions
from .kinds import Source
from .raw_ids import check_overlap, distinct_ids, index_ids, sort_ids
from .table_file import TableFile, id_column, require_column


def load(config: SourceConfig) -> Catalog:
    """Reads the catalog; an item is what the items' file names or, without one, what an interaction or a feature file names."""
    with source_folder(config) as source:
        return _read(source)


SOURCE = Source(load)


def _read(source: SourceFolder) -> Catalog:
    config = source.config
    user_column, item_column = config.user_column or "user", config.item_column or "item"
    name = config.interactions or source.first("interactions.parquet", "interactions.csv") or "interactions.parquet"
    path = source.file(name, "source.path and source.interactions")
    table = TableFile(path, [user_column, item_column])
    files = {modality: source.file(file, f"source.modalities.{modality}") for modality, file in (config.modalities or {}).items()}
    feature_tables = {modality: TableFile(file) for modality, file in files.items()}
    ids_of_features = {modality: feature_ids(modality, features, item_column) for modality, features in feature_tables.items()}
    items_file = _items_file(source)
    if items_file:
        hint = f"which is not in {items_file}; add it there or drop the row"
        item_ids = _listed_items(items_file, item_column)
        (user_ids,) = distinct_ids(table, {user_column: "source.user_column"}, config)
    else:
        hint = ""
        user_ids, item_ids = distinct_ids(table, {user_column: "source.user_column", item_column: "source.item_column"}, config)
        for modality, ids in ids_of_features.items():
            check_overlap(ids, item_ids, files[modality], path)
        item_ids = sort_ids(item_ids, *ids_of_features.values())
    user_ids = sort_ids(user_ids)
    pa.default_memory_pool().release_unused()

    def index_users(ids: pa.Array, first_row: int) -> np.ndarray:
        return index_ids(ids, user_ids, path, "", first_row)

    def index_items(ids: pa.Array, first_row: int) -> np.ndarray:
        return index_ids(ids, item_ids, path, hint, first_row)

    interactions = read_interactions(table, (user_column, item_column), (index_users, index_items), config, "split")
    features = {}
    for modality, feature_table in feature_tables.items():
        index = index_ids(ids_of_features[modality], item_ids, files[modality], hint, 0)
        features[modality] = read_features(modality, feature_table, index, len(item_ids), config)
    return Catalog(user_ids, item_ids, interactions, features)


def _items_file(source: SourceFolder) -> Path | None:
    name = source.config.items or source.first("items.parquet", "items.csv")
    return source.file(name, "source.items") if name else None


def _listed_items(path: Path, column: str) -> pa.Array:
    """Reads the raw ids of all items, sorted."""
    table = TableFile(path, [column])
    require_column(path, table.column_names, column, "source.item_column")
    return sort_ids(id_column(path, table.column(column), column, "source.item_column"))
