"""The canonical dataset artifact: what every later verb reads, whatever the source was.

manifest.json                       counts, per-modality dimension, type and missing rows, SHA-256 of every file
users.parquet, items.parquet        index (int64), id (string)
interactions/<split>.parquet        user, item (int32 indices), ordered by (user, item); a split may be absent
features/<modality>/part-*.parquet  vector: fixed-size lists of float16 or float32 in item order, null where missing
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..core.errors import InputError, RunError
from ..core.graph import Csr
from ..core.storage import manifest_digest, open_artifact, read_manifest, write_artifact
from .catalog import SPLITS, Catalog, Unsplit, check_catalog, check_finite, feature_chunk_rows, pair_keys, stored_dtype
from .external import grouped
from .splits import split_labels

__all__ = ["Catalog", "Dataset", "ModalityInfo", "open_dataset", "write_dataset"]

FILE_ROWS = 65_536  # feature rows in a file
PAIR_BYTES = 160  # of memory for an interaction while it is sorted and split
GROUP_PAIRS = 1 << 20  # interactions in a row group


def write_dataset(url: str, catalog: Catalog, source_info: dict, memory_mib: int = 1024) -> dict:
    """Checks a catalog and writes it as a dataset artifact. The same input gives the same manifest, byte for byte.

    Args:
        url: Where the dataset goes.
        catalog: What to write.
        source_info: JSON-able facts about the source, kept in the manifest.
        memory_mib: For interactions that are sorted, MiB; more of them go through files.

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
        metadata |= _write_interactions(folder / "interactions", catalog, memory_mib * 2**20 // PAIR_BYTES)
        metadata["modalities"] = {
            modality: _write_features(folder / "features" / modality, modality, rows, present)
            for modality, (rows, present) in catalog.features.items()
        }
    return read_manifest(url, "dataset")


def _write_ids(path: Path, ids: pa.Array) -> None:
    index = pa.array(np.arange(len(ids)), pa.int64())
    pq.write_table(pa.table({"index": index, "id": ids}), path)


def _write_interactions(folder: Path, catalog: Catalog, most: int) -> dict:
    """Writes every split there is, a run of users at a time; returns the manifest's counts."""
    folder.mkdir()
    num_interactions, num_duplicates = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    degrees, trained = np.zeros(catalog.num_users, np.int64), [np.zeros(n, bool) for n in (catalog.num_users, catalog.num_items)]
    for chunk in catalog.rows():
        degrees += np.bincount(chunk["user"], minlength=catalog.num_users)
    unsplit = catalog.interactions if isinstance(catalog.interactions, Unsplit) else None
    rng = np.random.default_rng(unsplit.config.seed if unsplit else 0)
    schema, twice = pa.schema({"user": pa.int32(), "item": pa.int32()}), _InTwoSplits(catalog)
    with contextlib.ExitStack() as stack:
        files: dict[str, pq.ParquetWriter] = {}
        for records in grouped(catalog.rows(), lambda rows: rows["user"], degrees, most):
            labels = records["label"]
            if unsplit is not None:
                times = records["time"] if unsplit.times is not None else None
                labels = split_labels(records["user"], records["item"], unsplit.config, rng, times)
            keys = pair_keys(records["user"], records["item"], catalog.num_items)
            by_split = [_distinct(keys[labels == label]) for label in range(len(SPLITS))]
            twice.look_in(by_split)
            for label, (split, distinct) in enumerate(zip(SPLITS, by_split)):
                if not len(distinct):
                    continue
                users, items = np.divmod(distinct, np.int64(catalog.num_items))
                num_interactions[split] += len(distinct)
                num_duplicates[split] += int(np.count_nonzero(labels == label)) - len(distinct)
                if split == "train":
                    trained[0][users], trained[1][items] = True, True
                if split not in files:
                    files[split] = stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", schema))
                table = pa.table({"user": pa.array(users, pa.int32()), "item": pa.array(items, pa.int32())})
                files[split].write_table(table, row_group_size=GROUP_PAIRS)
    twice.refuse()
    untrained = {f"{kind}_without_train": int((~seen).sum()) for kind, seen in zip(("users", "items"), trained)}
    return {"num_interactions": num_interactions, "duplicates_merged": num_duplicates, **untrained}


def _distinct(keys: np.ndarray) -> np.ndarray:
    """The distinct keys, ascending; `np.unique` hashes integers first, which is several times slower here."""
    keys = np.sort(keys)
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


class _InTwoSplits:
    """Pairs that stand in two splits."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._first: dict[tuple[str, str], int] = {}
        self._number: dict[tuple[str, str], int] = {}

    def look_in(self, by_split: list[np.ndarray]) -> None:
        """Takes the distinct pairs' keys of every split, of a run of users."""
        for first, second in itertools.combinations(range(len(SPLITS)), 2):
            found = np.intersect1d(by_split[first], by_split[second], assume_unique=True)
            if len(found):
                names = SPLITS[first], SPLITS[second]
                self._first.setdefault(names, int(found[0]))
                self._number[names] = self._number.get(names, 0) + len(found)

    def refuse(self) -> None:
        """Raises InputError where there are any."""
        for (first, second), key in self._first.items():
            user, item = divmod(key, self._catalog.num_items)
            raise InputError(
                f"user {self._catalog.user_ids[user].as_py()!r} and item {self._catalog.item_ids[item].as_py()!r} are a pair in both "
                f"{first} and {second} ({self._number[first, second]} such pairs); keep each pair in one split"
            )


def _write_features(folder: Path, modality: str, rows: np.ndarray, present: np.ndarray) -> dict:
    """Writes one modality, a chunk in memory at a time; returns its entry in the manifest."""
    folder.mkdir(parents=True)
    dtype, dim = stored_dtype(rows), rows.shape[1]
    schema = pa.schema({"vector": pa.list_(pa.from_numpy_dtype(dtype), dim)})
    size = feature_chunk_rows(dim * dtype.itemsize)
    for part, first in enumerate(range(0, len(rows), FILE_ROWS)):
        with pq.ParquetWriter(folder / f"part-{part:05d}.parquet", schema, use_dictionary=False) as writer:
            for start in range(first, min(first + FILE_ROWS, len(rows)), size):
                stop = min(start + size, first + FILE_ROWS, len(rows))
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
    withheld: frozenset[str] = frozenset()

    def without(self, split: str) -> "Dataset":
        """The same dataset for work that may not see a split: it has none of that name, and reading it raises."""
        return dataclasses.replace(self, withheld=self.withheld | {split})

    def has_split(self, split: str) -> bool:
        """Whether the split ("train", "validation" or "test") has interactions."""
        return split not in self.withheld and self.manifest["num_interactions"][split] > 0

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
        users, items = (table[name].to_numpy().astype(np.int64) for name in ("user", "item"))
        return users, items

    def pair_chunks(self, split: str, rows: int = 1 << 20) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A split's users and items, int32 [n] each with n from 1 to `rows`, in (user, item) order; the split must be there."""
        self._check_given(split)
        with pq.ParquetFile(self.folder / "interactions" / f"{split}.parquet") as file:
            for batch in file.iter_batches(rows, columns=["user", "item"]):
                if batch.num_rows:
                    yield batch["user"].to_numpy(), batch["item"].to_numpy()

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
