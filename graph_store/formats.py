"""Reads a raw catalog of any supported format.

parquet    interactions.parquet or .csv (user, item, optionally timestamp and split), optionally items.parquet or .csv
           (item); features: a Parquet file of item and vector for every modality
mmrec      one .inter file: tab-separated userID, itemID, x_label (0 train, 1 validation, 2 test); .npy features
promptmm   train.json, val.json, test.json ({user: [items]}), optionally train_mat (a pickled matrix, read for its
           shape); .npy features
diffmm     trnMat.pkl, valMat.pkl, tstMat.pkl (pickled user-item matrices); .npy features
lightgcn   train.txt, test.txt, optionally valid.txt: a line a user: user item item ...
synthetic  generated, see `synthetic.py`

All but parquet and synthetic number users and items from 0: row i of a .npy file is item i.
Messages count rows from 0, without the header, and lines from 1.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..core.errors import InputError
from .catalog import Catalog, Pairs, Unsplit
from .config import SourceConfig
from .safe_pickle import load_matrix
from .sources import Source, check_npy, load_npy
from .synthetic import synthetic_catalog
from .tables import load_parquet, mmrec_interactions

_MODALITY_NAMES = {"image": "visual", "audio": "acoustic", "text": "textual"}
_FEATURES = "_feat.npy"
_MAX_ID = 2**31 - 1  # int32 in the dataset
_SPARSE_IDS = 1_000_000  # ids beyond this must be about as many as the interactions
_DENSE = "this format numbers users and items 0, 1, 2, ...; use source.format=parquet for other ids"

Split = tuple[Path, Pairs]  # where it was read from, for messages


PREPARE_MIB = 512  # of prepare beside source.memory_mib and the ids: the interpreter, its libraries and their buffers
ID_BYTES = 320  # of memory for a user or item while ids are sorted and looked up, ids of up to about 16 characters


def memory_bound(config: SourceConfig) -> str:
    """What memory `prepare` takes at the most, in words; mapped files do not count."""
    if config.format in ("promptmm", "diffmm", "lightgcn"):
        return f"source.format={config.format} is read whole: all interactions in memory"
    return f"at most {config.memory_mib + PREPARE_MIB:,} MiB of memory and {ID_BYTES} bytes for every user and item"


def load_catalog(config: SourceConfig) -> Catalog:
    """Reads (or generates) the catalog that `config` describes.

    Raises:
        InputError: a file is missing, damaged or inconsistent; the message names it, and the row or the setting.
    """
    if config.format == "synthetic":
        return synthetic_catalog(config)
    # Arrays that are memory-mapped from a fetched copy stay valid after the folder is gone.
    with tempfile.TemporaryDirectory(prefix="promptmm-source-") as cache:
        source = Source(config, Path(cache))
        if config.format == "parquet":
            return load_parquet(source)
        loader = {"mmrec": _mmrec, "promptmm": _promptmm, "diffmm": _diffmm, "lightgcn": _lightgcn}[config.format]
        return _indexed_catalog(source, *loader(source))


def _mmrec(source: Source) -> tuple[dict[str, Split] | tuple[Path, Unsplit], None]:
    path, found = mmrec_interactions(source)
    return ((path, found) if isinstance(found, Unsplit) else {split: (path, pairs) for split, pairs in found.items()}), None


def _promptmm(source: Source) -> tuple[dict[str, Split], tuple[int, int] | None]:
    files = {"train": "train.json", "validation": "val.json", "test": "test.json"}
    paths = {split: source.file(name) for split, name in files.items()}
    matrix = source.first("train_mat", "train_mat.pkl")
    shape = load_matrix(source.file(matrix)).shape if matrix else None
    return {split: (path, _json_pairs(path)) for split, path in paths.items()}, shape


def _diffmm(source: Source) -> tuple[dict[str, Split], tuple[int, int]]:
    files = {"train": "trnMat.pkl", "validation": "valMat.pkl", "test": "tstMat.pkl"}
    paths = {split: source.file(name) for split, name in files.items()}
    matrices = {split: load_matrix(path) for split, path in paths.items()}
    shape = matrices["train"].shape
    for split, matrix in matrices.items():
        if matrix.shape != shape:
            raise InputError(f"{paths[split]}: the matrix has shape {matrix.shape}, {paths['train']} has {shape}")
    return {split: (paths[split], (matrix.rows, matrix.columns)) for split, matrix in matrices.items()}, shape


def _lightgcn(source: Source) -> tuple[dict[str, Split], None]:
    valid = source.first("valid.txt", "val.txt")
    files = {"train": "train.txt", **({"validation": valid} if valid else {}), "test": "test.txt"}
    paths = {split: source.file(name) for split, name in files.items()}
    return {split: (path, _line_pairs(path)) for split, path in paths.items()}, None


def _json_pairs(path: Path) -> Pairs:
    """Pairs of a JSON object {user: [items]}."""
    try:
        by_user = json.loads(path.read_bytes() or b"{}")
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); it may be truncated: write it again") from error
    if not isinstance(by_user, dict):
        raise InputError(f"{path}: expected an object {{user: [items]}}, found a {type(by_user).__name__}")
    users, items = [], []
    for user, listed in by_user.items():
        if not user.isdecimal() or not isinstance(listed, list) or not all(type(item) is int for item in listed):
            raise InputError(f'{path}: user {user!r}: expected "user": [items] with users and items numbered from 0')
        if max([int(user), *map(abs, listed)]) > _MAX_ID:
            raise InputError(f"{path}: user {user!r}: an id is more than {_MAX_ID}; {_DENSE}")
        users.append(np.full(len(listed), int(user), np.int64))
        items.append(np.array(listed, np.int64))
    return _concatenate(users), _concatenate(items)


def _line_pairs(path: Path) -> Pairs:
    """Pairs of a text file with a line a user: user item item ..."""
    users, items = [], []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                user, *listed = [int(word) for word in line.split()] or [0]
                users.append(np.full(len(listed), user, np.int64))
                items.append(np.array(listed, np.int64))
            except (ValueError, OverflowError) as error:
                raise InputError(f"{path}, line {number}: expected numbers, user item item ... ({error})") from error
    return _concatenate(users), _concatenate(items)


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _indexed_catalog(source: Source, found: dict[str, Split] | tuple[Path, Unsplit], shape: tuple[int, int] | None) -> Catalog:
    """The catalog of a source whose ids are dense indices already.

    Without a declared `shape`, the ids in use tell how many users there are, and the feature files (or else the ids)
    how many items: an item at the end that nobody interacted with is normal.
    """
    splits = found if isinstance(found, dict) else {"interactions": (found[0], found[1].pairs)}
    for path, (users, _) in splits.values():
        if len(users) == 0:
            raise InputError(f"{path}: no interactions in it; the file is empty")
    features = {modality: (path, load_npy(modality, path)) for modality, path in _feature_files(source).items()}
    if shape is None:
        num_users, num_items = _used_shape(splits)
        shape = num_users, max([num_items, *(len(rows) for _, rows in features.values() if rows.ndim)])
    for path, (users, items) in splits.values():
        for what, index, count in (("user", users, shape[0]), ("item", items, shape[1])):
            bad = index[(index < 0) | (index >= count)]
            if len(bad):
                raise InputError(f"{path}: {what} {bad[0]} is out of range, expected 0 to {count - 1}; {len(bad)} such interactions")
    for modality, (path, rows) in features.items():
        check_npy(modality, path, rows, shape[1])
    present = np.ones(shape[1], bool)
    return Catalog(
        pa.array(range(shape[0])).cast(pa.large_string()),
        pa.array(range(shape[1])).cast(pa.large_string()),
        {split: pairs for split, (_, pairs) in found.items()} if isinstance(found, dict) else found[1],
        {modality: (rows, present) for modality, (_, rows) in features.items()},
    )


def _used_shape(splits: dict[str, Split]) -> tuple[int, int]:
    """Users and items as the largest ids tell."""
    most = max(_SPARSE_IDS, 100 * sum(len(users) for _, (users, _) in splits.values()))
    for path, pairs in splits.values():
        largest = max(int(index.max()) for index in pairs)
        if largest >= most:
            raise InputError(f"{path}: an id is {largest}, but {_DENSE}")
    num_users, num_items = (1 + max(int(pairs[side].max()) for _, pairs in splits.values()) for side in (0, 1))
    return num_users, num_items


def _feature_files(source: Source) -> dict[str, Path]:
    """Feature files by modality: those of `source.modalities` or else every *_feat.npy there is."""
    config = source.config
    names = config.modalities
    if names is None:
        found = {name.removesuffix(_FEATURES): name for name in source.matching(_FEATURES)}
        renamed = {} if config.format == "promptmm" else _MODALITY_NAMES
        names = {renamed.get(prefix, prefix): name for prefix, name in found.items()}
    return {modality: source.file(name, f"source.modalities.{modality}") for modality, name in names.items()}
