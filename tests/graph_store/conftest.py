"""Small catalogs on disk in every source format, and the real data where it is."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from promptmm.core.errors import InputError
from promptmm.graph_store.catalog import Catalog, ids_of

NUM_USERS, NUM_ITEMS = 4, 6
SPLITS = {
    "train": ([0, 0, 1, 1, 2, 3], [0, 1, 1, 2, 3, 4]),
    "validation": ([0, 1], [2, 3]),
    "test": ([0, 2], [5, 0]),
}
VISUAL = np.arange(NUM_ITEMS * 3, dtype=np.float16).reshape(NUM_ITEMS, 3)


@pytest.fixture
def small() -> Catalog:
    """A catalog of 4 users and 6 items with one modality."""
    return Catalog(
        ids_of([str(user) for user in range(NUM_USERS)]),
        ids_of([str(item) for item in range(NUM_ITEMS)]),
        {split: (np.array(users), np.array(items)) for split, (users, items) in SPLITS.items()},
        {"visual": (VISUAL, np.ones(NUM_ITEMS, bool))},
    )


def _by_user(split: str) -> dict[str, list[int]]:
    listed: dict[str, list[int]] = {str(user): [] for user in range(NUM_USERS)}
    for user, item in zip(*SPLITS[split]):
        listed[str(user)].append(item)
    return listed


def _save_matrix(path: Path, split: str, kind: str = "coo", protocol: int | None = None) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    users, items = SPLITS[split]
    matrix = sparse.coo_matrix((np.ones(len(users)), (users, items)), shape=(NUM_USERS, NUM_ITEMS)).asformat(kind)
    path.write_bytes(pickle.dumps(matrix, protocol=protocol))


def _diffmm(folder: Path) -> None:
    for name, split in (("trnMat", "train"), ("valMat", "validation"), ("tstMat", "test")):
        _save_matrix(folder / f"{name}.pkl", split)
    np.save(folder / "image_feat.npy", VISUAL)


def _promptmm(folder: Path) -> None:
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        (folder / f"{name}.json").write_text(json.dumps(_by_user(split)))
    _save_matrix(folder / "train_mat", "train", "csr")
    np.save(folder / "visual_feat.npy", VISUAL)


def _mmrec(folder: Path) -> None:
    lines = [f"{u}\t{i}\t{label}" for label, split in enumerate(SPLITS) for u, i in zip(*SPLITS[split])]
    (folder / "small.inter").write_text("\n".join(["userID\titemID\tx_label", *lines]) + "\n")
    np.save(folder / "image_feat.npy", VISUAL)


def _lightgcn(folder: Path) -> None:
    for name, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        lines = (" ".join(map(str, [user, *items])) for user, items in _by_user(split).items())
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "visual_feat.npy", VISUAL)


def _table() -> pa.Table:
    rows = [(u, i, split) for split in SPLITS for u, i in zip(*SPLITS[split])]
    return pa.table({"user": [r[0] for r in rows], "item": [r[1] for r in rows], "split": [r[2] for r in rows]})


def _parquet(folder: Path) -> None:
    pq.write_table(_table(), folder / "interactions.parquet")
    order = [3, 1, 0, 2, 5, 4]
    vectors = pa.array(VISUAL[order].tolist(), pa.list_(pa.float16()))
    pq.write_table(pa.table({"item": order, "vector": vectors}), folder / "visual.parquet")


def _csv(folder: Path) -> None:
    _parquet(folder)
    (folder / "interactions.parquet").unlink()
    pyarrow.csv.write_csv(_table(), folder / "interactions.csv")


WRITERS = {
    "diffmm": _diffmm,
    "promptmm": _promptmm,
    "mmrec": _mmrec,
    "lightgcn": _lightgcn,
    "parquet": _parquet,
    "csv": _csv,
}


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the small catalog in a format ("csv" is parquet with a CSV of interactions) and returns its folder."""

    def write(format: str) -> Path:
        folder = tmp_path / format
        folder.mkdir()
        WRITERS[format](folder)
        return folder

    return write


@pytest.fixture
def save_matrix() -> Callable[..., None]:
    """Pickles a split of the small catalog: (path, split, kind="coo", protocol=None)."""
    return _save_matrix


@pytest.fixture
def fails() -> Callable[..., Any]:
    """Expects an InputError whose message has all the given parts in this order."""
    return lambda *parts: pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set; skips the test where it is not."""

    def find(name: str) -> Path:
        folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / name
        if not folder.is_dir():
            pytest.skip(f"{name} is not there")
        return folder

    return find
