"""A whole catalog, as every source format yields it, and the checks it must pass.

Interactions and features may lie in scratch files; only ids, and some entries for every user or item, are in memory.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import InputError
from .config import SourceConfig

SPLITS = ("train", "validation", "test")
COLD = "cold"  # the split of all interactions with items that `source.cold_items` holds out whole; no source has it
CHUNK_ROWS = 8192  # feature rows checked or written at a time, fewer where they are wide
CHUNK_BYTES = 16 * 2**20
CHUNK_PAIRS = 1 << 20  # interactions checked or copied at a time

Pairs = tuple[np.ndarray, np.ndarray]  # users [n] and items [n], integers; may be memory-mapped


def feature_chunk_rows(row_bytes: int) -> int:
    """Feature rows of one modality in memory at a time."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(row_bytes, 1)))


@dataclass(frozen=True)
class Unsplit:
    """Interactions of a source that has no split of its own; they are split per user as they are written (`splits.py`).

    Attributes:
        pairs: Users [n] and items [n].
        config: `split`, `train_ratio`, `validation_ratio` and `seed`.
        times: [n] numbers, for `split="time"`.
    """

    pairs: Pairs
    config: SourceConfig
    times: np.ndarray | None = None


@dataclass(frozen=True)
class Catalog:
    """Users, items, interactions and features, by dense index.

    Attributes:
        user_ids, item_ids: Raw ids, strings; the position is the dense index.
        interactions: Pairs by split (a split that the source does not have is absent), or pairs without a split.
        features: (rows [num_items, dim], present [num_items] bool) by modality; rows may be memory-mapped.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    interactions: dict[str, Pairs] | Unsplit
    features: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def rows(self) -> Iterator[np.ndarray]:
        """All interactions in chunks: structured arrays of user, item, label (index of SPLITS; -1: none yet) and, where there are, time."""
        if isinstance(self.interactions, Unsplit):
            yield from _records(self.interactions.pairs, -1, self.interactions.times)
        else:
            for split, pairs in self.interactions.items():
                yield from _records(pairs, SPLITS.index(split), None)


def ids_of(names: Sequence[str]) -> pa.Array:
    """Raw ids as a column."""
    return pa.array(names, pa.large_string())


def _records(pairs: Pairs, label: int, times: np.ndarray | None) -> Iterator[np.ndarray]:
    fields = [("user", "<i4"), ("item", "<i4"), ("label", "i1")]
    dtype = np.dtype(fields if times is None else [*fields, ("time", times.dtype)])
    for start in range(0, len(pairs[0]), CHUNK_PAIRS):
        chunk = slice(start, start + CHUNK_PAIRS)
        records = np.empty(len(pairs[0][chunk]), dtype)
        records["user"], records["item"], records["label"] = pairs[0][chunk], pairs[1][chunk], label
        if times is not None:
            records["time"] = times[chunk]
        yield records


def check_catalog(catalog: Catalog) -> None:
    """Checks ids, interactions and the features' shapes; pairs in two splits and feature values are found as they are written.

    Raises:
        InputError: with the id, split, row or modality, and what to do.
    """
    for what, ids in (("user", catalog.user_ids), ("item", catalog.item_ids)):
        if pc.count_distinct(ids).as_py() != len(ids):
            counts = pc.value_counts(ids)
            twice = counts.field(0).filter(pc.greater(counts.field(1), 1))[0].as_py()
            raise InputError(f"{what} id {twice!r} occurs twice; ids must be unique")
    if max(catalog.num_users, catalog.num_items) > np.iinfo(np.int32).max:
        raise InputError(f"{max(catalog.num_users, catalog.num_items)} users or items are more than fit an int32 index")
    if isinstance(catalog.interactions, Unsplit):
        named = {"the interactions": catalog.interactions.pairs}
    else:
        if unknown := set(catalog.interactions) - set(SPLITS):
            raise InputError(f"unknown split {min(unknown)!r}; expected {', '.join(SPLITS)}")
        if "train" not in catalog.interactions:
            raise InputError("the catalog has no train split; nothing can be learned without one")
        named = {f"split {split!r}": pairs for split, pairs in catalog.interactions.items()}
    for name, (users, items) in named.items():
        if len(users) == 0:
            raise InputError(f"{name} is empty; leave it out of the source or give it interactions")
        if users.shape != items.shape:
            raise InputError(f"{name}: {len(users)} users for {len(items)} items; expected pairs")
        _check_range(name, "user", users, catalog.num_users)
        _check_range(name, "item", items, catalog.num_items)
    for modality, (rows, present) in catalog.features.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", modality):
            raise InputError(f"modality {modality!r}: use letters, digits, - and _ only in the names of source.modalities")
        check_rows(modality, "its array", rows, catalog.num_items)
        if present.shape != (catalog.num_items,):
            raise InputError(f"modality {modality!r}: the mask of present rows must have {catalog.num_items} entries")


def _check_range(name: str, what: str, index: np.ndarray, count: int) -> None:
    first, number = None, 0
    for start in range(0, len(index), CHUNK_PAIRS):
        chunk = index[start : start + CHUNK_PAIRS]
        bad = np.flatnonzero((chunk < 0) | (chunk >= count))
        number += len(bad)
        if len(bad) and first is None:
            first = start + int(bad[0])
    if first is not None:
        raise InputError(
            f"{name}, row {first}: {what} {index[first]} is out of range, the catalog has {count} {what}s (0 to {count - 1}); "
            f"{number} such rows"
        )


def pair_keys(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """One int64 per pair, ordered as (user, item)."""
    return users * np.int64(num_items) + items


def check_rows(modality: str, where: str, rows: np.ndarray, num_items: int) -> None:
    """Checks that a modality's array is numeric, two-dimensional and has one row an item."""
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"modality {modality!r}: {where} has shape {rows.shape}, expected [items, dimensions]")
    if rows.dtype.kind not in "fiub":
        raise InputError(f"modality {modality!r}: {where} holds {rows.dtype}, expected numbers")
    if len(rows) != num_items:
        raise InputError(
            f"modality {modality!r}: {where} has {len(rows)} rows, the catalog has {num_items} items; "
            "write one row for every item, in the order of the item ids"
        )


def check_finite(modality: str, where: str, rows: np.ndarray, present: np.ndarray, start: int = 0) -> None:
    """Checks the present rows for NaN and infinity; `start` is the first row's number, for the message."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1) & present)
    if len(bad):
        value = "NaN" if np.isnan(rows[bad[0]]).any() else "an infinite value"
        raise InputError(
            f"modality {modality!r}: row {start + bad[0]} of {where} has {value}; "
            "correct it, or leave the row out where the format allows (null in parquet)"
        )


def stored_dtype(rows: np.ndarray) -> np.dtype:
    """The type in which a modality is kept: float16 as it is, everything else as float32."""
    return np.dtype(np.float16 if rows.dtype == np.float16 else np.float32)
