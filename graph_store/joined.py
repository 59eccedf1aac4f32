"""Writes the dataset of a run that trains on another one's validation interactions, too."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.artifact import read_manifest, write_artifact
from ..core.sides import ITEMS, SIDE_NAMES, USERS
from .catalog import pair_keys
from .dataset import Dataset
from .dataset_writer import GROUP_PAIRS
from .mapped_rows import pair_chunks, rows_name, write_rows

OF_TRAIN = ("train", "validation")  # the splits that are train in the joined dataset


def write_joined(url: str, dataset: Dataset) -> dict:
    """Writes a dataset like another one, whose validation interactions are of the train split, and which has no validation split.

    Users, items, features and the other splits stay as they are, byte for byte. A million interactions of each split are in memory at a
    time.

    Args:
        url: Where it goes.
        dataset: The other one.

    Returns:
        The manifest; `joined` in it is the other dataset's checksum.
    """
    others = ("files", "kind", "schema_version", "num_interactions", "duplicates_merged", "digest")
    metadata = {name: value for name, value in dataset.manifest.items() if name not in others}
    metadata["joined"] = dataset.digest
    for name in ("num_interactions", "duplicates_merged"):
        counts = dict(dataset.manifest[name])
        metadata[name] = {**counts, "train": sum(counts[split] for split in OF_TRAIN), "validation": 0}
    with write_artifact(url, "dataset", metadata) as folder:
        anew = {f"interactions/{name}" for split in OF_TRAIN for name in (f"{split}.parquet", rows_name(split))}
        for name in dataset.manifest["files"]:
            if name not in anew:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(dataset.folder / name, folder / name)
        train = folder / "interactions" / "train.parquet"
        metadata |= _write_train(train, dataset)
        num_pairs = metadata["num_interactions"]["train"]
        write_rows(train.with_name(rows_name("train")), pair_chunks(train), dataset.num_users, num_pairs)
    return read_manifest(url, "dataset")


def _write_train(path: Path, dataset: Dataset) -> dict[str, int]:
    """Writes the pairs of both splits in their order; returns how many users and items have none of them."""
    path.parent.mkdir(exist_ok=True)
    has_train = [np.zeros(count, bool) for count in (dataset.num_users, dataset.num_items)]
    schema = pa.schema({name: pa.int32() for name in SIDE_NAMES})
    with pq.ParquetWriter(path, schema) as writer:
        for keys in _merged(*(_keys(dataset, split) for split in OF_TRAIN)):
            pairs = np.divmod(keys, np.int64(dataset.num_items))
            for side in (USERS, ITEMS):
                has_train[side][pairs[side]] = True
            table = pa.table({name: pa.array(ids, pa.int32()) for name, ids in zip(SIDE_NAMES, pairs)})
            writer.write_table(table, row_group_size=GROUP_PAIRS)
    return {f"{name}s_without_train": int((~seen).sum()) for name, seen in zip(SIDE_NAMES, has_train)}


def _keys(dataset: Dataset, split: str) -> Iterator[np.ndarray]:
    """Yields a split's pairs as ascending int64 keys, some at a time; nothing where there is no such split."""
    if dataset.has_split(split):
        for users, items in dataset.pair_chunks(split, GROUP_PAIRS):
            yield pair_keys(users, items, dataset.num_items)


def _merged(first: Iterator[np.ndarray], second: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the keys of two ascending sequences in one, some at a time."""
    sources, waiting = [first, second], [next(first, None), next(second, None)]
    while waiting[0] is not None and waiting[1] is not None:
        end = min(int(keys[-1]) for keys in waiting if keys is not None)
        ready = []
        for n, keys in enumerate(waiting):
            assert keys is not None
            count = int(np.searchsorted(keys, end, side="right"))
            ready.append(keys[:count])
            waiting[n] = keys[count:] if count < len(keys) else next(sources[n], None)
        yield np.sort(np.concatenate(ready), kind="stable")
    for keys, source in zip(waiting, sources):
        if keys is not None:
            yield keys
            yield from source
