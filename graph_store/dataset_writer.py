"""Writing the canonical dataset artifact from a catalog; dataset.py says what is in it."""

import contextlib
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.artifact import read_manifest, write_artifact
from ..core.errors import InputError
from ..core.sides import ITEMS, SIDE_NAMES, USERS
from .catalog import COLD, SPLITS, Catalog, Unsplit, check_catalog, check_finite, feature_chunk_rows, pair_keys, stored_dtype
from .cold_items import choose_cold_items
from .external import grouped
from .mapped_rows import pair_chunks, rows_name, write_rows
from .splits import HoldOut, split_labels

FILE_ROWS = 65_536  # feature rows in a file
PAIR_BYTES = 160  # of memory for an interaction while it is sorted and split
GROUP_PAIRS = 1 << 20  # interactions in a row group
NOTHING = HoldOut()


def write_dataset(url: str, catalog: Catalog, source_info: dict, memory_mib: int = 1024, hold_out: HoldOut = NOTHING) -> dict:
    """Checks a catalog and writes it as a dataset artifact. The same input gives the same manifest, byte for byte.

    Args:
        url: Where the dataset goes.
        catalog: What to write.
        source_info: JSON-able facts about the source, kept in the manifest.
        memory_mib: For interactions that are sorted, MiB; more of them go through files.
        hold_out: What is held out beside the source's own splits.

    Returns:
        The manifest.

    Raises:
        InputError: the catalog is not valid (the message names the split and row, or the modality and row), or what is to be held out
            cannot be.
    """
    check_catalog(catalog)
    _check_hold_out(catalog, hold_out)
    is_cold = choose_cold_items(catalog, hold_out.cold_items, hold_out.seed)
    metadata: dict = {"num_users": catalog.num_users, "num_items": catalog.num_items, "source": source_info}
    with write_artifact(url, "dataset", metadata) as folder:
        _write_ids(folder / "users.parquet", catalog.user_ids)
        _write_ids(folder / "items.parquet", catalog.item_ids)
        metadata |= _write_interactions(folder / "interactions", catalog, is_cold, hold_out, memory_mib * 2**20 // PAIR_BYTES)
        if is_cold.any():
            metadata["num_cold_items"] = int(is_cold.sum())
            if not metadata["num_interactions"]["train"]:
                raise InputError(f"source.cold_items={hold_out.cold_items} leaves no train interaction; hold out fewer items")
        if hold_out.validation_from_train and not metadata["num_interactions"]["validation"]:
            raise InputError(
                f"source.validation_from_train={hold_out.validation_from_train} is less than half an interaction of every user, and none "
                "is held out; raise it"
            )
        metadata["modalities"] = {
            modality: _write_features(folder / "features" / modality, modality, rows, present)
            for modality, (rows, present) in catalog.features.items()
        }
    return read_manifest(url, "dataset")


def _check_hold_out(catalog: Catalog, hold_out: HoldOut) -> None:
    """Raises InputError where validation interactions cannot come from train."""
    share = f"source.validation_from_train={hold_out.validation_from_train}"
    if not hold_out.validation_from_train:
        return
    if isinstance(catalog.interactions, Unsplit):
        raise InputError(f"{share}: the source has no split of its own; source.train_ratio and source.validation_ratio say how it is split")
    if "validation" in catalog.interactions:
        raise InputError(f"{share}: the source has a validation split of its own; leave the setting out")


def _write_ids(path: Path, ids: pa.Array) -> None:
    index = pa.array(np.arange(len(ids)), pa.int64())
    pq.write_table(pa.table({"index": index, "id": ids}), path)


def _write_interactions(folder: Path, catalog: Catalog, is_cold: np.ndarray, hold_out: HoldOut, most: int) -> dict:
    """Writes every split there is, a run of users at a time; returns the manifest's counts.

    Args:
        folder: Where the splits go.
        catalog: What to write.
        is_cold: bool [num_items], the items whose interactions are all of the split `cold`.
        hold_out: What moves from train to validation.
        most: Interactions in memory at a time.
    """
    folder.mkdir()
    splits = (*SPLITS, COLD) if is_cold.any() else SPLITS
    num_interactions, num_duplicates = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
    degrees, has_train = np.zeros(catalog.num_users, np.int64), [np.zeros(n, bool) for n in (catalog.num_users, catalog.num_items)]
    for chunk in catalog.rows():
        degrees += np.bincount(chunk["user"], minlength=catalog.num_users)
    unsplit = catalog.interactions if isinstance(catalog.interactions, Unsplit) else None
    rng = np.random.default_rng(unsplit.config.seed if unsplit else hold_out.seed)
    schema, twice = pa.schema({"user": pa.int32(), "item": pa.int32()}), _InTwoSplits(catalog)
    with contextlib.ExitStack() as stack:
        files: dict[str, pq.ParquetWriter] = {}
        for records in grouped(catalog.rows(), lambda rows: rows["user"], degrees, most):
            cold, keys = is_cold[records["item"]], pair_keys(records["user"], records["item"], catalog.num_items)
            if unsplit is None:
                twice.look_in([_distinct(keys[records["label"] == label]) for label in range(len(SPLITS))])
                labels = np.where(cold, len(SPLITS), records["label"])
            else:
                labels = np.full(len(records), len(SPLITS), np.int8)
                labels[~cold] = _split(records[~cold], unsplit, rng)
            labels = hold_out.changed(records, labels, rng)
            by_split = [_distinct(keys[labels == label]) for label in range(len(splits))]
            for label, (split, distinct) in enumerate(zip(splits, by_split)):
                if not len(distinct):
                    continue
                users, items = np.divmod(distinct, np.int64(catalog.num_items))
                num_interactions[split] += len(distinct)
                num_duplicates[split] += int(np.count_nonzero(labels == label)) - len(distinct)
                if split == "train":
                    has_train[USERS][users], has_train[ITEMS][items] = True, True
                if split not in files:
                    files[split] = stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", schema))
                table = pa.table({"user": pa.array(users, pa.int32()), "item": pa.array(items, pa.int32())})
                files[split].write_table(table, row_group_size=GROUP_PAIRS)
    twice.refuse()
    for split in files:
        pairs = pair_chunks(folder / f"{split}.parquet")
        write_rows(folder / rows_name(split), pairs, catalog.num_users, num_interactions[split])
    untrained = {f"{name}s_without_train": int((~seen).sum()) for name, seen in zip(SIDE_NAMES, has_train)}
    return {"num_interactions": num_interactions, "duplicates_merged": num_duplicates, **untrained}


def _split(records: np.ndarray, unsplit: Unsplit, rng: np.random.Generator) -> np.ndarray:
    """Splits the interactions of a run of users that are not held out with their items; int8 [n]."""
    if not len(records):
        return np.empty(0, np.int8)
    times = records["time"] if unsplit.times is not None else None
    return split_labels(records["user"], records["item"], unsplit.config, rng, times)


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Sorts the distinct keys; `np.unique` hashes integers first, which is several times slower here."""
    keys = np.sort(keys)
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


class _InTwoSplits:
    """Collects the pairs that stand in two splits."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._first: dict[tuple[str, str], int] = {}
        self._number: dict[tuple[str, str], int] = {}

    def look_in(self, by_split: list[np.ndarray]) -> None:
        """Looks among the pairs of a run of users.

        Args:
            by_split: The distinct keys of every split's pairs, ascending int64.
        """
        for first, second in itertools.combinations(range(len(SPLITS)), 2):
            shared = np.intersect1d(by_split[first], by_split[second], assume_unique=True)
            if len(shared):
                names = SPLITS[first], SPLITS[second]
                self._first.setdefault(names, int(shared[0]))
                self._number[names] = self._number.get(names, 0) + len(shared)

    def refuse(self) -> None:
        """Raises InputError where there are any such pairs."""
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
