"""`source.format=promptmm`: JSON objects {user: [items]}, optionally a pickled matrix that tells the shape, and .npy features."""

import json
from pathlib import Path

import numpy as np

from ...core.errors import InputError
from ..catalog import Catalog, Pairs
from ..config import SourceConfig
from .folder import source_folder
from .indexed import DENSE, MAX_ID, PairsFile, indexed_catalog, join_ids
from .kinds import Source
from .npy import feature_files
from .safe_pickle import load_matrix

FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}


def load(config: SourceConfig) -> Catalog:
    """Reads the catalog; all interactions are in memory. Feature files are named after their modality."""
    with source_folder(config) as source:
        paths = {split: source.file(name) for split, name in FILES.items()}
        matrix = source.first("train_mat", "train_mat.pkl")
        shape = load_matrix(source.file(matrix)).shape if matrix else None
        splits = {split: PairsFile(path, _json_pairs(path)) for split, path in paths.items()}
        return indexed_catalog(splits, feature_files(source, renamed={}), shape)


MAX_DIGITS = 40
SOURCE = Source(load, reads_whole=True)


def _json_pairs(path: Path) -> Pairs:
    try:
        by_user = json.loads(path.read_bytes() or b"{}")
    except (ValueError, RecursionError) as error:  # the second one: brackets without end
        raise InputError(f"{path}: not valid JSON ({error}); it may be truncated: write it again") from error
    if not isinstance(by_user, dict):
        raise InputError(f"{path}: expected an object {{user: [items]}}, found a {type(by_user).__name__}")
    users, items = [], []
    for user, listed in by_user.items():
        if len(user) > MAX_DIGITS:  # more than Python makes a number of
            raise InputError(f"{path}: user {user[:MAX_DIGITS]!r}...: an id is more than {MAX_ID}; {DENSE}")
        if not user.isdecimal() or not isinstance(listed, list) or not all(type(item) is int for item in listed):
            raise InputError(f'{path}: user {user!r}: expected "user": [items] with users and items numbered from 0')
        if max([int(user), *map(abs, listed)]) > MAX_ID:
            raise InputError(f"{path}: user {user!r}: an id is more than {MAX_ID}; {DENSE}")
        users.append(np.full(len(listed), int(user), np.int64))
        items.append(np.array(listed, np.int64))
    return join_ids(users), join_ids(items)
