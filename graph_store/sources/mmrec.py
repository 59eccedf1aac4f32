"""`source.format=mmrec`: one .inter file with tab-separated userID, itemID (0, 1, ...) and x_label (0, 1, 2), and .npy features."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import InputError
from ..catalog import Catalog, Unsplit
from ..config import SourceConfig
from .folder import SourceFolder, source_folder
from .indexed import PairsFile, indexed_catalog
from .interactions import Indexer, read_interactions
from .kinds import Source
from .npy import feature_files
from .table_file import TableFile


def load(config: SourceConfig) -> Catalog:
    """Reads the catalog; interactions are read in pieces and lie in scratch files."""
    with source_folder(config) as source:
        path = _interactions_file(source)
        columns = config.user_column or "userID", config.item_column or "itemID"
        indexers = _indexer(path, columns[0]), _indexer(path, columns[1])
        interactions = read_interactions(TableFile(path, columns), columns, indexers, config, "x_label")
        if isinstance(interactions, Unsplit):
            return indexed_catalog({"all": PairsFile(path, interactions.pairs)}, feature_files(source), unsplit=interactions)
        return indexed_catalog({split: PairsFile(path, pairs) for split, pairs in interactions.items()}, feature_files(source))


SOURCE = Source(load)


def _interactions_file(source: SourceFolder) -> Path:
    config, names = source.config, source.matching(".inter")
    if not config.interactions and len(names) != 1:
        what = f"found {', '.join(names)}" if names else "there is none"
        raise InputError(f"{config.path}: expected one .inter file, {what}; name it in source.interactions")
    return source.file(config.interactions or names[0], "source.interactions")


def _indexer(path: Path, column: str) -> Indexer:
    def index(ids: pa.Array, first_row: int) -> np.ndarray:
        wrong = ~pc.match_substring_regex(ids, r"^\d{1,18}$").to_numpy(zero_copy_only=False)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(f"{path}, row {first_row + row}: {column} is {ids[row].as_py()!r}, expected a number from 0")
        return ids.cast(pa.int64()).to_numpy()

    return index
