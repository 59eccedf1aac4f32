"""`source.format=lightgcn`: text files with a line a user, user item item ..., and .npy features where there are."""

from pathlib import Path

import numpy as np

from ...core.errors import InputError
from ..catalog import Catalog, Pairs
from ..config import SourceConfig
from .folder import source_folder
from .indexed import PairsFile, indexed_catalog, join_ids
from .kinds import Source
from .npy import feature_files


def load(config: SourceConfig) -> Catalog:
    """Reads the catalog; all interactions are in memory. The validation split may be absent."""
    with source_folder(config) as source:
        validation = source.first("valid.txt", "val.txt")
        names = {"train": "train.txt", **({"validation": validation} if validation else {}), "test": "test.txt"}
        paths = {split: source.file(name) for split, name in names.items()}
        splits = {split: PairsFile(path, _line_pairs(path)) for split, path in paths.items()}
        return indexed_catalog(splits, feature_files(source))


SOURCE = Source(load, reads_whole=True)


def _line_pairs(path: Path) -> Pairs:
    users, items = [], []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                user, *listed = [int(word) for word in line.split()] or [0]
                users.append(np.full(len(listed), user, np.int64))
                items.append(np.array(listed, np.int64))
            except (ValueError, OverflowError) as error:
                raise InputError(f"{path}, line {number}: expected numbers, user item item ... ({error})") from error
    return join_ids(users), join_ids(items)
