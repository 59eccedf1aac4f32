"""The canonical dataset artifact: what every later verb reads, whatever the source was.

manifest.json                       counts, per-modality dimension, type and missing rows, SHA-256 of every file
users.parquet, items.parquet        index (int64), id (string)
interactions/<split>.parquet        user, item (int32 indices), ordered by (user, item); a split may be absent; `cold` has all interactions
                                    with the items that are held out whole
interactions/<split>.rows.safetensors  the same pairs as rows of users, to be mapped into memory
features/<modality>/part-*.parquet  vector: fixed-size lists of float16 or float32 in item order, null where missing
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..core.artifact import manifest_digest, open_artifact
from ..core.errors import InputError, RunError
from ..core.graph import Csr
from ..core.ranking import MergedRows, Rows
from ..core.sides import ITEMS, SIDE_NAMES, USERS
from .mapped_rows import CHUNK_PAIRS, open_rows, pair_chunks, rows_name


@dataclass(frozen=True)
class ModalityInfo:
    """A modality's shape: dimension, element type ("float16" or "float32") and the number of items without a row."""

    dim: int
    dtype: str
    missing_rows: int


@dataclass(frozen=True)
class Dataset:
    """A verified dataset artifact on this machine's disk; see `open_dataset`."""

    folder: Path
    manifest: dict
    digest: str
    num_users: int
    num_items: int
    modalities: dict[str, ModalityInfo]
    withheld: frozenset[str] = frozenset()

    def without(self, split: str) -> "Dataset":
        """The same dataset for work that may not see a split: it has none of that name, and reading it raises."""
        return dataclasses.replace(self, withheld=self.withheld | {split})

    def has_split(self, split: str) -> bool:
        """Whether the split ("train", "validation", "test" or "cold") has interactions."""
        return split not in self.withheld and self.manifest["num_interactions"].get(split, 0) > 0

    def _check_given(self, split: str) -> None:
        if split in self.withheld:
            raise RunError(f"{self.folder}: the {split} split is withheld from training and selection, and was asked for")

    def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Users [n] and items [n] (int64 indices) of a split, ordered by (user, item); empty where it is absent.

        Raises:
            RunError: the split is withheld (see `without`).
        """
        self._check_given(split)
        if not self.has_split(split):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        table = pq.read_table(self.folder / "interactions" / f"{split}.parquet")
        users, items = (table[name].to_numpy().astype(np.int64) for name in SIDE_NAMES)
        return users, items

    def pair_chunks(self, split: str, rows: int = CHUNK_PAIRS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A split's users and items, int32 [n] each with n from 1 to `rows`, in (user, item) order; the split must be there."""
        self._check_given(split)
        return pair_chunks(self.folder / "interactions" / f"{split}.parquet", rows)

    def csr(self, split: str) -> Csr:
        """A split's items of every user in memory, int64; no rows' items where the split is absent."""
        users, items = (torch.from_numpy(ids) for ids in self.interactions(split))
        return Csr.from_pairs(users, items, self.num_users, self.num_items)

    def rows(self, split: str) -> Csr:
        """A split's items of every user, memory-mapped, with int32 columns; no rows' items where the split is absent.

        A dataset of an earlier version has no file to map: its rows are read into memory.
        """
        self._check_given(split)
        path = self.folder / "interactions" / rows_name(split)
        if self.has_split(split) and path.exists():
            return open_rows(path, self.num_items)
        return self.csr(split)

    def csr_of(self, split: str, users: Tensor) -> Csr:
        """A split's items of some users, int64 [n], as a matrix of n rows, read from those of all users."""
        return self.rows(split).select(users)

    def degrees(self, split: str, side: int) -> Tensor:
        """The number of a split's interactions of every user or item, int64; a piece of the split is in memory at a time."""
        self._check_given(split)
        count = (self.num_users, self.num_items)[side]
        degrees = np.zeros(count, np.int64)
        for pairs in self.pair_chunks(split) if self.has_split(split) else ():
            degrees += np.bincount(pairs[side], minlength=count)
        return torch.from_numpy(degrees)

    def id_chunks(self, side: int) -> Iterator[pa.Array]:
        """Raw ids of users or of items by index, large strings, a chunk in memory at a time."""
        with pq.ParquetFile(self.folder / f"{SIDE_NAMES[side]}s.parquet") as file:
            for batch in file.iter_batches(columns=["id"]):
                yield batch["id"].cast(pa.large_string())

    def ids(self, side: int) -> pa.Array:
        """Raw ids of users or of items by index, large strings."""
        return pa.chunked_array([*self.id_chunks(side)], pa.large_string()).combine_chunks()

    def user_ids(self) -> list[str]:
        """Raw user ids by index."""
        return self.ids(USERS).to_pylist()

    def item_ids(self) -> list[str]:
        """Raw item ids by index."""
        return self.ids(ITEMS).to_pylist()

    def feature_chunks(self, modality: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """A modality's rows in item order, a chunk in memory at a time.

        Yields:
            The first item's index, rows [n, dim] in the stored type with zeros where missing, and present [n] bool.
        """
        if modality not in self.modalities:
            known = ", ".join(self.modalities) or "none"
            raise InputError(f"modality {modality!r}: the dataset has none of this name; it has {known}")
        info, start = self.modalities[modality], 0
        for path in sorted((self.folder / "features" / modality).iterdir()):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    vectors = file.read_row_group(group)["vector"].combine_chunks()
                    present = ~vectors.is_null().to_numpy(zero_copy_only=False)
                    rows = np.zeros((len(vectors), info.dim), info.dtype)
                    rows[present] = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, info.dim)
                    yield start, rows, present
                    start += len(rows)

    def features(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """A modality as a whole: rows [num_items, dim] with zeros where missing, and present [num_items] bool."""
        chunks = list(self.feature_chunks(modality))
        return np.concatenate([rows for _, rows, _ in chunks]), np.concatenate([present for _, _, present in chunks])


def open_dataset(url: str, cache_dir: str | None = None) -> Dataset:
    """Opens and verifies a dataset.

    Args:
        url: The artifact's folder.
        cache_dir: Where a remote dataset is downloaded to.

    Raises:
        InputError: it is missing, incomplete, or a file does not match its checksum.
    """
    folder, manifest = open_artifact(url, "dataset", cache_dir)
    modalities = {name: ModalityInfo(**info) for name, info in manifest["modalities"].items()}
    return Dataset(folder, manifest, manifest_digest(manifest), manifest["num_users"], manifest["num_items"], modalities)


def masks(dataset: Dataset, split: str) -> tuple[Csr, Rows]:
    """Opens the held-out items of a split, and the items masked out: train when validating, train and validation when testing.

    Both are memory-mapped.
    """
    train = dataset.rows("train")
    if split == "test" and dataset.has_split("validation"):
        return dataset.rows(split), MergedRows(train, dataset.rows("validation"))
    return dataset.rows(split), train
