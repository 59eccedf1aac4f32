"""A whole catalog in memory, as every source format yields it, and the checks it must pass."""

import re
from dataclasses import dataclass, field

import numpy as np

from ..core.errors import InputError

SPLITS = ("train", "validation", "test")
CHUNK_ROWS = 8192  # feature rows checked or written at a time

Pairs = tuple[np.ndarray, np.ndarray]  # users [n] int64, items [n] int64


@dataclass(frozen=True)
class Catalog:
    """Users, items, interactions and features, by dense index.

    Attributes:
        user_ids, item_ids: Raw ids; the position is the dense index.
        splits: (users [n], items [n]) int64 by split; a split that the source does not have is absent.
        features: (rows [num_items, dim], present [num_items] bool) by modality; rows may be memory-mapped.
    """

    user_ids: list[str]
    item_ids: list[str]
    splits: dict[str, Pairs]
    features: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)


def check_catalog(catalog: Catalog) -> None:
    """Checks ids, splits and the features' shapes (their values are checked as they are written).

    Raises:
        InputError: with the id, split, row or modality, and what to do.
    """
    for what, ids in (("user", catalog.user_ids), ("item", catalog.item_ids)):
        if len(set(ids)) != len(ids):
            seen: set[str] = set()
            twice = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError(f"{what} id {twice!r} occurs twice; ids must be unique")
    if unknown := set(catalog.splits) - set(SPLITS):
        raise InputError(f"unknown split {min(unknown)!r}; expected {', '.join(SPLITS)}")
    if "train" not in catalog.splits:
        raise InputError("the catalog has no train split; nothing can be learned without one")
    if max(catalog.num_users, catalog.num_items) > np.iinfo(np.int32).max:
        raise InputError(f"{max(catalog.num_users, catalog.num_items)} users or items are more than fit an int32 index")
    for split, (users, items) in catalog.splits.items():
        if len(users) == 0:
            raise InputError(f"split {split!r} is empty; leave it out of the source or give it interactions")
        if users.shape != items.shape:
            raise InputError(f"split {split!r}: {len(users)} users for {len(items)} items; expected pairs")
        _check_range(split, "user", users, catalog.num_users)
        _check_range(split, "item", items, catalog.num_items)
    _check_disjoint(catalog)
    for modality, (rows, present) in catalog.features.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", modality):
            raise InputError(f"modality {modality!r}: use letters, digits, - and _ only in the names of source.modalities")
        check_rows(modality, "its array", rows, catalog.num_items)
        if present.shape != (catalog.num_items,):
            raise InputError(f"modality {modality!r}: the mask of present rows must have {catalog.num_items} entries")


def _check_range(split: str, what: str, index: np.ndarray, count: int) -> None:
    bad = np.flatnonzero((index < 0) | (index >= count))
    if len(bad):
        raise InputError(
            f"split {split!r}, row {bad[0]}: {what} {index[bad[0]]} is out of range, the catalog has {count} {what}s "
            f"(0 to {count - 1}); {len(bad)} such rows"
        )


def pair_keys(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """One int64 per pair, ordered as (user, item)."""
    return users * np.int64(num_items) + items


def _check_disjoint(catalog: Catalog) -> None:
    keys = {split: np.unique(pair_keys(*pairs, catalog.num_items)) for split, pairs in catalog.splits.items()}
    names = list(keys)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = np.intersect1d(keys[first], keys[second], assume_unique=True)
            if len(both):
                user, item = divmod(int(both[0]), catalog.num_items)
                raise InputError(
                    f"user {catalog.user_ids[user]!r} and item {catalog.item_ids[item]!r} are a pair in both {first} "
                    f"and {second} ({len(both)} such pairs); keep each pair in one split"
                )


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


def merge_duplicates(pairs: Pairs, num_items: int) -> tuple[Pairs, int]:
    """The distinct pairs ordered by (user, item), and how many repeats were dropped."""
    keys = np.unique(pair_keys(*pairs, num_items))
    users, items = np.divmod(keys, np.int64(num_items))
    return (users, items), len(pairs[0]) - len(keys)
