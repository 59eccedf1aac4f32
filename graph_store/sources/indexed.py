"""Catalogs whose ids are dense indices already: checks, and the number of users and items."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...core.errors import InputError
from ...core.sides import ITEMS, SIDES, USERS
from ..catalog import Catalog, Pairs, Unsplit
from .npy import check_npy, load_npy

MAX_ID = 2**31 - 1  # int32 in the dataset
DENSE = "this format numbers users and items 0, 1, 2, ...; use source.format=parquet for other ids"
_SPARSE_IDS = 1_000_000  # ids beyond this must be about as many as the interactions


@dataclass(frozen=True)
class PairsFile:
    """Interactions of one split, and the file that they were read from, for messages."""

    path: Path
    pairs: Pairs


def indexed_catalog(
    splits: Mapping[str, PairsFile], feature_files: Mapping[str, Path], shape: tuple[int, int] | None = None, unsplit: Unsplit | None = None
) -> Catalog:
    """Makes the catalog of a source whose ids are dense indices already.

    Without a declared `shape`, the ids in use tell how many users there are, and the feature files (or else the ids)
    how many items: an item at the end that nobody interacted with is normal.

    Args:
        splits: Interactions by split; with `unsplit` one file of them, under any name.
        feature_files: .npy files by modality.
        shape: Number of users and items, where the source tells.
        unsplit: The same interactions, where the source has no split.

    Raises:
        InputError: a file is empty, an id is out of range, or a feature file does not fit the items.
    """
    for file in splits.values():
        if len(file.pairs[USERS]) == 0:
            raise InputError(f"{file.path}: no interactions in it; the file is empty")
    features = {modality: load_npy(modality, path) for modality, path in feature_files.items()}
    if shape is None:
        num_users, num_items = _used_shape(splits)
        shape = num_users, max([num_items, *(len(rows) for rows in features.values() if rows.ndim)])
    for file in splits.values():
        for what, index, count in zip(("user", "item"), file.pairs, shape):
            bad = index[(index < 0) | (index >= count)]
            if len(bad):
                raise InputError(f"{file.path}: {what} {bad[0]} is out of range, expected 0 to {count - 1}; {len(bad)} such interactions")
    for modality, rows in features.items():
        check_npy(modality, feature_files[modality], rows, shape[ITEMS])
    present = np.ones(shape[ITEMS], bool)
    user_ids, item_ids = (pa.array(range(count)).cast(pa.large_string()) for count in shape)
    interactions = unsplit or {split: file.pairs for split, file in splits.items()}
    return Catalog(user_ids, item_ids, interactions, {modality: (rows, present) for modality, rows in features.items()})


def join_ids(arrays: list[np.ndarray]) -> np.ndarray:
    """Joins arrays of ids, int64 [n] each; none give an empty one."""
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _used_shape(splits: Mapping[str, PairsFile]) -> tuple[int, int]:
    """Users and items as the largest ids tell."""
    most = max(_SPARSE_IDS, 100 * sum(len(file.pairs[USERS]) for file in splits.values()))
    for file in splits.values():
        largest = max(int(index.max()) for index in file.pairs)
        if largest >= most:
            raise InputError(f"{file.path}: an id is {largest}, but {DENSE}")
    num_users, num_items = (1 + max(int(file.pairs[side].max()) for file in splits.values()) for side in SIDES)
    return num_users, num_items
