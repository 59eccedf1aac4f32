"""The canonical dataset artifact: what every later verb reads, whatever the source was.

manifest.json                       counts, per-modality dimension, type and missing rows, SHA-256 of every file
users.parquet, items.parquet        index (int64), id (string)
interactions/<split>.parquet        user, item (int32 indices), ordered by (user, item); a split may be absent
features/<modality>/part-*.parquet  vector: fixed-size lists of float16 or float32 in item order, null where missing
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..core.errors import InputError
from ..core.graph import Csr
from ..core.storage import manifest_digest, open_artifact, read_manifest, write_artifact
from .catalog import CHUNK_ROWS, SPLITS, Catalog, check_catalog, check_finite, merge_duplicates, stored_dtype

__all__ = ["Catalog", "Dataset", "ModalityInfo", "open_dataset", "write_dataset"]

FILE_ROWS = 65_536  # feature rows in a file; a multiple of CHUNK_ROWS


def write_dataset(url: str, catalog: Catalog, source_info: dict) -> dict:
    """Checks a catalog and writes it as a dataset artifact. The same input gives the same manifest, byte for byte.

    Args:
        url: Where the dataset goes.
        catalog: What to write.
        source_info: JSON-able facts about the source, kept in the manifest.

    Returns:
        The manifest.

    Raises:
        InputError: the catalog is not valid; the message names the split and row, or the modality and row.
    """
    check_catalog(catalog)
    metadata: dict = {"num_users": catalog.num_users, "num_items": catalog.num_items, "source": source_info}
    with write_artifact(url, "dataset", metadata) as folder:
        _write_ids(folder / "users.parquet", catalog.user_ids)
        _write_ids(folder / "items.parquet", catalog.item_ids)
        metadata |= _write_interactions(folder / "interactions", catalog)
        metadata["modalities"] = {
            modality: _write_features(folder / "features" / modality, modality, rows, present)
            for modality, (rows, present) in catalog.features.items()
        }
    return read_manifest(url, "dataset")


def _write_ids(path: Path, ids: list[str]) -> None:
    index = pa.array(np.arange(len(ids)), pa.int64())
    pq.write_table(pa.table({"index": index, "id": pa.array(ids, pa.string())}), path)


def _write_interactions(folder: Path, catalog: Catalog) -> dict:
    """Writes every split there is; returns the manifest's counts."""
    folder.mkdir()
    num_interactions, num_duplicates = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    num_untrained = {"users_without_train": catalog.num_users, "items_without_train": catalog.num_items}
    for split, pairs in catalog.splits.items():
        (users, items), num_duplicates[split] = merge_duplicates(pairs, catalog.num_items)
        num_interactions[split] = len(users)
        table = pa.table({"user": pa.array(users, pa.int32()), "item": pa.array(items, pa.int32())})
        pq.write_table(table, folder / f"{split}.parquet")
        if split == "train":
            num_untrained["users_without_train"] -= len(np.unique(users))
            num_untrained["items_without_train"] -= len(np.unique(items))
    return {"num_interactions": num_interactions, "duplicates_merged": num_duplicates, **num_untrained}


def _write_features(folder: Path, modality: str, rows: np.ndarray, present: np.ndarray) -> dict:
    """Writes one modality, a chunk in memory at a time; returns its entry in the manifest."""
    folder.mkdir(parents=True)
    dtype, dim = stored_dtype(rows), rows.shape[1]
    schema = pa.schema({"vector": pa.list_(pa.from_numpy_dtype(dtype), dim)})
    for part, first in enumerate(range(0, len(rows), FILE_ROWS)):
        with pq.ParquetWriter(folder / f"part-{part:05d}.parquet", schema, use_dictionary=False) as writer:
            for start in range(first, min(first + FILE_ROWS, len(rows)), CHUNK_ROWS):
                stop = min(start + CHUNK_ROWS, first + FILE_ROWS, len(rows))
                here = present[start:stop]
                with np.errstate(over="ignore"):  # a float64 too large for float32 is reported as infinite
                    values = np.where(here[:, None], rows[start:stop], 0).astype(dtype)
                check_finite(modality, "its features", values, here, start)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim, mask=pa.array(~here))
                writer.write_table(pa.table({"vector": vectors}, schema=schema))
    return {"dim": dim, "dtype": dtype.name, "missing_rows": int((~present).sum())}


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

    def has_split(self, split: str) -> bool:
        """Whether the split ("train", "validation" or "test") has interactions."""
        return self.manifest["num_interactions"][split] > 0

    def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Users [n] and items [n] (int64 indices) of a split, ordered by (user, item); empty where it is absent."""
        if not self.has_split(split):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        table = pq.read_table(self.folder / "interactions" / f"{split}.parquet")
        users, items = (table[name].to_numpy().astype(np.int64) for name in ("user", "item"))
        return users, items

    def csr(self, split: str) -> Csr:
        """A split's items of every user; no rows' items where the split is absent."""
        users, items = (torch.from_numpy(ids) for ids in self.interactions(split))
        return Csr.from_pairs(users, items, self.num_users, self.num_items)

    def user_ids(self) -> list[str]:
        """Raw user ids by index."""
        return pq.read_table(self.folder / "users.parquet")["id"].to_pylist()

    def item_ids(self) -> list[str]:
        """Raw item ids by index."""
        return pq.read_table(self.folder / "items.parquet")["id"].to_pylist()

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
